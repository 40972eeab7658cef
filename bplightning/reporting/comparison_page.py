"""A comparison as a table for the terminal and as a page, both drawn from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from bplightning.reporting.charts import Dot, dots
from bplightning.reporting.comparison import Comparison, Point
from bplightning.reporting.rendering import Figure, rendered
from bplightning.reporting.table import quantity

HEADS = ("run", "strategy", "seed", "kept", "score", "ms", "faster", "on disk")


def render(comparison: Comparison) -> Table:
    """The table.

    Args:
        comparison: What `bplightning.reporting.comparison.compare` returned.
    """
    drawn = Table(
        title=Text(_title(comparison)),
        caption=Text(_note(comparison)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for place, name in enumerate(HEADS):
        drawn.add_column(name, justify="left" if place < 2 else "right", no_wrap=place > 0, overflow="fold")
    for row in _rows(comparison):
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def draw(comparison: Comparison) -> str:
    """The page: the table, and the score against latency and against size.

    Args:
        comparison: What `bplightning.reporting.comparison.compare` returned.
    """
    pictures = []
    if comparison["machines"] == 1:
        pictures.append(_plane(comparison, "latency_ms", f"latency at {comparison['shape']} (ms)"))
    pictures.append(_plane(comparison, "bytes", "weights on disk (MB)"))
    values = {
        "title": _title(comparison),
        "note": _note(comparison),
        "pictures": pictures,
        "heads": ("", *HEADS),
        "rows": [(str(place), *row) for place, row in enumerate(_rows(comparison), 1)],
    }
    return rendered("comparison.html.j2", values)


def _title(comparison: Comparison) -> str:
    data = comparison["data"] or {}
    on = " ".join(str(data[key]) for key in ("validation", "dataset_config") if data.get(key))
    return f"{comparison['metric']} of {comparison['task']}{f' on {on}' if on else ''}"


def _note(comparison: Comparison) -> str:
    better = "Higher" if comparison["mode"] == "max" else "Lower"
    note = (
        f"{better} is better; *: Pareto-optimal. ms: time of a batch of {comparison['shape']}, computed from the run's "
        "measured speed-up and the median time of the dense model over the runs."
    )
    if comparison["machines"] > 1:
        note += f" Latencies are from {comparison['machines']} machines and are not compared."
    return note


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    several = len({point["model"] for point in comparison["points"]}) > 1
    return [
        (
            point["run"],
            f"{point['strategy']}, {point['model']}" if several else point["strategy"],
            "–" if point["seed"] is None else str(point["seed"]),
            f"{100 * point['density']:.1f} %",
            f"{point['score']:.2f}",
            _cell(point, "latency_ms", None if point["latency_ms"] is None else f"{point['latency_ms']:.2f}"),
            "–" if point["speedup"] is None else f"{point['speedup']:.2f}x",
            _cell(point, "bytes", None if point["bytes"] is None else quantity(point["bytes"])),
        )
        for point in comparison["points"]
    ]


def _cell(point: Point, cost: str, text: str | None) -> str:
    return "–" if text is None else f"{text}{' *' if _best(point, cost) else ''}"


def _best(point: Point, cost: str) -> bool:
    return point["beaten"].get(cost) is False


def _plane(comparison: Comparison, cost: Literal["latency_ms", "bytes"], axis: str) -> Figure:
    """Score against one cost; points have their numbers in the table."""
    numbered = [(place, point) for place, point in enumerate(comparison["points"], 1) if point[cost] is not None]
    divisor = 1e6 if cost == "bytes" else 1.0
    marks = [
        Dot(str(place), float(point[cost] or 0) / divisor, point["score"], point["kind"], _best(point, cost))
        for place, point in numbered
    ]
    best = _names([(place, point) for place, point in numbered if _best(point, cost)])
    words = f"Pareto-optimal: {best}."
    return Figure(
        f"Against {axis.partition(' (')[0]}",
        dots(cost, f"{comparison['metric']} against {axis}", words, marks, axis=axis),
        note="Numbers are those of the table. The line connects the Pareto-optimal models.",
        legend=[("compact", "compact"), ("dense", "dense")],
    )


def _names(numbered: Sequence[tuple[int, Point]]) -> str:
    return ", ".join(f"{place} ({point['run']}, {point['kind']}, {point['score']:.2f})" for place, point in numbered)
