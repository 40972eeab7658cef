"""Draw the pictures of docs/results.md from the rows in benchmarks/results.

    python benchmarks/tables/plots.py

Needs `pip install -e ".[plots]"`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no window
import matplotlib.pyplot as plt

from benchmarks.tables import quality_table
from benchmarks.tables.tables import RESULTS, ROOT, SQUAD_ROWS, sst2_rows

IMAGES = ROOT / "docs" / "images"
SEEDS = dict.fromkeys(quality_table.SEEDS, "") | {"filled-25-seed2": "filled-25, three seeds"}
"""Points so close that one has the name of all."""


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw(
        IMAGES / "squad_minilm.png",
        [RESULTS / "squad_minilm" / f"{name}.json" for name in SQUAD_ROWS],
        score=lambda report: report["metrics"]["compact"]["f1"],
        axis="F1 (per cent)",
        title="MiniLM, split of SQuAD v1.1, two epochs: per cent of weights kept",
    )
    draw(
        IMAGES / "sst2_minilm.png",
        [RESULTS / "sst2_minilm" / f"{name}.json" for name in sst2_rows()],
        score=lambda report: report["held_out"]["accuracy"],
        axis="accuracy on 5,000 held-out sentences (per cent)",
        title="MiniLM, SST-2, 20,000 sentences, three epochs: per cent of weights kept",
    )

    draw(
        IMAGES / "quality.png",
        [quality_table.RESULTS / f"{name}.json" for name in quality_table.ROWS],
        score=lambda report: report["held_out"]["accuracy"],
        axis="accuracy on 5,000 held-out sentences (per cent)",
        title="MiniLM, SST-2, with teacher and refill",
        label=lambda row: SEEDS.get(row.stem, row.stem),
        span=8,
    )
    draw_front_page(IMAGES / "accuracy-and-speed.png")


def draw_front_page(path: Path) -> None:
    """The picture of README.md: the dense model, and what three strategies keep of its accuracy at which speed.

    Hybrid at a quarter of the weights is the mean of three seeds; each other point is one run.
    """
    read = {row: json.loads((quality_table.RESULTS / f"{row}.json").read_text()) for row in quality_table.ROWS}

    def point(*rows: str) -> tuple[float, float]:
        speedups = [1.0 if row == "dense" else read[row]["speedup"]["8x128"] for row in rows]
        return sum(speedups) / len(rows), sum(read[row]["held_out"]["accuracy"] for row in rows) / len(rows)

    quarter = [row for row in read if row in quality_table.SEEDS]
    hybrid = [("dense",), ("filled-50",), tuple(quarter), ("filled-12",)]
    kept = ["dense", "50 % of the weights", "25 %", "12 %"]
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    points = [point(*rows) for rows in hybrid]
    axes.axhline(points[0][1], color="black", lw=0.8, ls=":", zorder=1)
    axes.plot(*zip(*points, strict=True), color=COLOURS["hybrid"], marker="o", ms=8, lw=2, label="hybrid, refilled")
    for name in ("movement", "magnitude"):
        axes.plot(*point(f"{name}-25"), color=COLOURS[name], marker="o", ms=8, ls="", label=f"{name}, refilled, 25 %")
    axes.plot(*points[0], color="black", marker="o", ms=9, ls="", label="dense")
    for (speedup, accuracy), words in zip(points, kept, strict=True):
        text = words if words == "dense" else f"{words}\n{speedup:.1f}x, {accuracy - points[0][1]:+.1f} points"
        axes.annotate(
            text,
            (speedup, accuracy),
            xytext=(-24, -34) if words.startswith("50") else (8, 8),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set_xlabel("measured speed-up at 8 x 128 tokens (times the dense model)")
    axes.set_ylabel("accuracy, 5,000 held-out sentences (%)")
    axes.set_title("MiniLM on SST-2, fine-tuned and pruned by bplightning", fontsize=11)
    axes.grid(alpha=0.3)
    axes.set_xlim(0.7, 8)
    axes.set_ylim(88.4, 93.6)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def draw(
    path: Path,
    rows: list[Path],
    *,
    score: Callable[[dict[str, Any]], float],
    axis: str,
    title: str,
    label: Callable[[Path], str] | None = None,
    span: float = float("inf"),
) -> None:
    """A score against speed-up, a point a row, as the papers draw it.

    Args:
        path: The picture.
        rows: Reports of the runs; those not there are left out.
        score: From a report to the score.
        axis: What the score is.
        title: What is shown.
        label: From a row's file to what its point is called; by default by the strategy.
        span: Points below the best that are drawn to scale; what is lower stands at the lower edge, with its score.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    reports = {row: json.loads(row.read_text()) for row in rows if row.exists()}
    floor = max(map(score, reports.values())) - span
    for row, report in reports.items():
        height, strategy = score(report), report["strategy"]
        speedup = 1.0 if strategy == "dense" else report["speedup"]["8x128"]
        words = f"{strategy}, {100 * report['density']['encoder_linear']:.0f} %" if label is None else label(row)
        if height < floor:  # far below the others, which it would push together
            height, words = floor, f"{words}: {height:.1f}"
        marker = "v" if height == floor else "o"
        axes.scatter(speedup, height, s=60, color=COLOURS[strategy], marker=marker, zorder=3)
        axes.annotate(words, (speedup, height), xytext=(8, -4), textcoords="offset points", fontsize=9)
    axes.set_xlabel("speed-up at 8 x 128 tokens, compact against dense (times)")
    axes.set_ylabel(axis)
    axes.set_title(title, fontsize=11)
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
