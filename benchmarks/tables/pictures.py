"""The pictures of docs/how-it-works.md, drawn from the default run that benchmarks/quality/demo.py kept.

python benchmarks/tables/pictures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
INK, KEPT, GONE, SECOND = "#333333", "#2f6fab", "#e8e8e8", "#c4641a"
PROJECTIONS = ("query", "key", "value", "output")
SLOTS = 32
FULL = 9
"""What a report's patterns write for a tile of which all is left."""


def main() -> None:
    row = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    plt.rcParams |= {"font.size": 9, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK}
    schedule(row["curves"], IMAGES / "schedule.png")
    blocks(row["report"], IMAGES / "blocks.png")


def schedule(curves: dict[str, list[float]], file: Path) -> None:
    """The threshold, and what is kept of attention and of the feed-forward layers, by optimizer step."""
    figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    steps = curves["step"]
    for name, color, label in (
        ("density/attention", KEPT, "attention kept"),
        ("density/feed_forward", SECOND, "feed-forward kept"),
    ):
        axes.plot(steps, [100 * value for value in curves[name]], color=color, label=label, linewidth=1.6)
    axes.set(xlabel="optimizer steps", ylabel="weights kept, %", ylim=(0, 103), xlim=(0, steps[-1]))
    other = axes.twinx()
    other.plot(steps, curves["score_threshold"], color=INK, linestyle="--", linewidth=1.2, label="threshold")
    other.set(ylabel="threshold on sigmoid(score)", ylim=(0, 0.115))
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="center right", frameon=False)
    for each in (axes, other):
        each.spines[["top"]].set_visible(False)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def blocks(report: dict[str, Any], file: Path) -> None:
    """The four projections and the units of the layers that lost some heads, but not all: masked, then compact."""
    heads = {layer["name"]: layer for layer in report["heads"]["by_layer"]}
    partly = [each for each in report["patterns"] if 0 < heads[each["name"]]["kept"] < heads[each["name"]]["total"]]
    pattern = (partly or report["patterns"])[0]
    layer = heads[pattern["name"]]
    (units,) = (
        each for each in report["units"]["by_layer"] if each["name"].split(".")[1] == pattern["name"].split(".")[1]
    )
    figure, rows = plt.subplots(2, 5, figsize=(7.4, 3.6), layout="constrained", width_ratios=[1, 1, 1, 1, 1.5])
    for column, name in enumerate(PROJECTIONS):
        grid = np.array([[int(digit) for digit in line] for line in pattern["projections"][name].split()]) / FULL
        tiles = grid.shape[1 if name == "output" else 0] // layer["total"]
        kept = [head * tiles + part for head in layer["indices"] for part in range(tiles)]
        small = grid[:, kept] if name == "output" else grid[kept]
        for place, (axes, shown) in enumerate(zip(rows[:, column], (grid, small), strict=True)):
            draw(axes, shown, across=grid.shape)
            axes.set_title(name if place == 0 else f"{shown.shape[0]} x {shown.shape[1]} tiles", fontsize=9)
    share = units["kept"] / units["total"]
    scattered = np.random.default_rng(0).permutation(SLOTS) < round(share * SLOTS)  # a report says how many, not which
    for axes, slots in ((rows[0, 4], scattered), (rows[1, 4], np.sort(scattered)[::-1])):
        for slot, kept_here in enumerate(slots):
            if kept_here or axes is rows[0, 4]:
                color = SECOND if kept_here else GONE
                axes.add_patch(Rectangle(((slot + 0.05) / SLOTS, 0.3), 0.9 / SLOTS, 0.4, facecolor=color))
        shown = "feed-forward units" if axes is rows[0, 4] else f"{units['kept']} of {units['total']}"
        axes.set_title(shown, fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.axis("off")
    rows[0, 0].set_ylabel("masked", fontsize=9)
    rows[1, 0].set_ylabel("compact", fontsize=9)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def draw(axes: Any, grid: np.ndarray, *, across: tuple[int, int]) -> None:
    """A weight in tiles, on the scale of the whole one."""
    for (line, column), value in np.ndenumerate(grid):
        color = KEPT if value > 0 else GONE
        axes.add_patch(Rectangle((column + 0.05, line + 0.05), 0.9, 0.9, facecolor=color, alpha=max(value, 0.0) or 1.0))
    axes.set(xlim=(0, across[1]), ylim=(across[0], 0), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
