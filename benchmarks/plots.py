"""Draw the pictures of docs/results.md from the rows in benchmarks/results.

    python benchmarks/plots.py

Needs `pip install -e ".[plots]"`.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no window
import matplotlib.pyplot as plt
from tables import RESULTS, ROOT, SQUAD_ROWS

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    squad_minilm(IMAGES / "squad_minilm.png")


def squad_minilm(path: Path) -> None:
    """F1 against speed-up, a point a row, as the papers draw it."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for name in SQUAD_ROWS:
        row = RESULTS / "squad_minilm" / f"{name}.json"
        if not row.exists():
            continue
        report = json.loads(row.read_text())
        f1 = report["metrics"]["compact"]["f1"]
        speedup = 1.0 if name == "dense" else report["speedup"]["8x128"]
        density = 100 * report["density"]["encoder_linear"]
        kind = name.rpartition("-")[0] if name.split("-")[-1].isdigit() else name
        axes.scatter(speedup, f1, s=60, color=COLOURS[kind], zorder=3)
        label = f"{name}, {density:.0f} %"
        axes.annotate(label, (speedup, f1), xytext=(8, -4), textcoords="offset points", fontsize=9)
    axes.set_xlabel("speed-up at 8 x 128 tokens, compact against dense (times)")
    axes.set_ylabel("F1 (per cent)")
    axes.set_title("MiniLM, split of SQuAD v1.1, two epochs: per cent of weights kept", fontsize=11)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.12)
    axes.set_xlim(right=axes.get_xlim()[1] + 0.25 * (axes.get_xlim()[1] - axes.get_xlim()[0]))  # room for words
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


COLOURS = {
    "dense": "black",
    "hybrid": "tab:blue",
    "magnitude": "tab:red",
    "movement": "tab:orange",
    "soft-movement": "tab:green",
}

if __name__ == "__main__":
    main()
