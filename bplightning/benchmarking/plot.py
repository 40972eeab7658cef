"""The plot of a benchmark, drawn from its JSON: bars of latency, labelled with the speed-up."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bplightning.benchmarking.schema import Benchmark, Row
from bplightning.benchmarking.table import label, variant
from bplightning.errors import UserError
from bplightning.io.files import whole_file
from bplightning.reporting.table_format import UNSETTLED, times_faster

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # optional, and slow to import

COLOURS = {"dense": "#8c8c8c", "compact": "#1f77b4"}
COLUMNS = 4
"""Most panels side by side."""


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn.

    Args:
        path: The file; its extension is the format.

    Raises:
        UserError: matplotlib is missing, or does not write this format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib.") from None
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UserError(f"the plot {str(path)!r} must end with one of {', '.join(f'.{kind}' for kind in kinds)}.")


def plot(benchmark: Benchmark, path: Path) -> None:
    """Draw a benchmark into a file, which appears whole or not at all.

    Args:
        benchmark: What `bplightning.benchmarking.benchmark.benchmark` returned.
        path: The file; its folder exists.
    """
    with whole_file(path) as file:
        draw(benchmark).savefig(file, dpi=150, format=path.suffix.removeprefix(".").lower())


def draw(benchmark: Benchmark) -> Figure:
    """The plot, with a panel for each shape, each with its own scale.

    Args:
        benchmark: What `bplightning.benchmarking.benchmark.benchmark` returned.
    """
    from matplotlib.figure import Figure

    panels = [list(rows) for _, rows in groupby(benchmark["rows"], key=label)]
    across = min(COLUMNS, len(panels))
    down = math.ceil(len(panels) / across)
    bars = len(panels[0])
    figure = Figure(figsize=(max(6.4, across * (1.2 + 0.75 * bars)), 0.9 + 3.3 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    for panel, rows in zip(axes, panels, strict=False):
        names = [variant(benchmark, row).replace(" ", "\n") for row in rows]
        _panel(panel, rows, names)
    for panel in list(axes)[len(panels) :]:
        panel.set_axis_off()
    settings, machine = benchmark["settings"], benchmark["machine"]
    mark = "" if benchmark["settled"] else f"; {UNSETTLED} not settled"
    where = machine["cpu"] if settings["device"] == "cpu" else machine["device"]
    figure.suptitle(
        f"Median latency, {settings['dtype']}, {where}, CPU threads: {machine['threads']}\n"
        f"times: speed-up over dense in the same backend{mark}\n"
        "dashed: ideal by FLOPs; thin line: up to the 90th percentile",
        fontsize=9,
    )
    return figure


def _panel(axes: Any, rows: list[Row], names: list[str]) -> None:
    """The bars of one shape, each with its own scale."""
    dense = {row["backend"]: row["latency_ms"]["median"] for row in rows if row["model"] == "dense"}
    for place, row in enumerate(rows):
        median, p90 = row["latency_ms"]["median"], row["latency_ms"]["p90"]
        axes.bar(place, median, width=0.72, color=COLOURS[row["model"]])
        axes.vlines(place, median, p90, color="black", linewidth=0.8)
        words = f"{median:.3g} ms"
        if row["speedup"] is not None:
            words = f"{times_faster(row['speedup']['ratio'], row['speedup'])}\n{words}"
        axes.annotate(
            words, (place, max(median, p90)), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8
        )
        if row["ideal_speedup"] is not None and row["backend"] in dense:
            ideal = dense[row["backend"]] / row["ideal_speedup"]
            axes.hlines(ideal, place - 0.42, place + 0.42, color="tab:red", linestyle="--", linewidth=1.4)
    axes.set_xticks(range(len(rows)), names, fontsize=8)
    axes.set_title(label(rows[0]), fontsize=10)
    axes.set_ylabel("ms", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
