"""A comparison as a table for the terminal and as a page, both drawn from its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from markupsafe import Markup
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bplightning.measuring.records import Interval
from bplightning.reporting.charts import Dot, dots
from bplightning.reporting.comparison import Comparison, Cost, cost_of
from bplightning.reporting.comparison_points import Point
from bplightning.reporting.rendering import Figure, rendered
from bplightning.reporting.table import quantity
from bplightning.reporting.table_format import UNSETTLED, section, times_faster

HEADS = ("run", "strategy", "seed", "kept", "score", "ms", "faster", "on disk")
COLOURS = 8
"""Colours for strategies in the style sheet, ``kind-0`` and so on; a ninth strategy has the first again."""


def render(comparison: Comparison) -> RenderableType:
    """The table, the names of the runs, and the options in which they differ; 80 columns are enough.

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
    for name in ("", *HEADS[1:]):
        left = name == "strategy"
        drawn.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for place, (_, *row) in enumerate(_rows(comparison), 1):
        drawn.add_row(*(Text(cell) for cell in (str(place), *row)))
    runs = [
        f"{place}  {', '.join(point['runs'])}"
        for place, point in enumerate(comparison["points"], 1)
        if point["kind"] != "dense"
    ]
    parts = [drawn, section("Runs", runs)]
    if comparison["options"]:
        differ = [f"{name}: {_by_value(values)}" for name, values in comparison["options"].items()]
        parts.append(section("Options that differ, with the numbers of the rows", differ))
    return Group(*parts)


def draw(comparison: Comparison, pages: Mapping[str, str] = MappingProxyType({})) -> str:
    """The page: the table, the score against latency and against size, and the options in which the runs differ.

    Args:
        comparison: What `bplightning.reporting.comparison.compare` returned.
        pages: A run's name to the address of its own page, as seen from this one.
    """
    pictures = []
    if comparison["machines"] == 1:
        words = "Each run's speed-up, on the median time of the dense model over all runs."
        pictures.append(_plane(comparison, "latency_ms", f"latency at {comparison['shape']} (ms)", words))
    pictures.append(_plane(comparison, "bytes", "weights on disk (MB)", ""))
    compact = sum(point["kind"] == "compact" for point in comparison["points"])
    values = {
        "title": _title(comparison),
        "note": _note(comparison),
        "pictures": pictures,
        "heads": ("", *HEADS),
        "rows": [
            (str(place), _links(point, pages), *row)
            for place, (point, (_, *row)) in enumerate(zip(comparison["points"], _rows(comparison), strict=True), 1)
        ],
        "option_heads": ("option", *map(str, range(1, compact + 1))),
        "options": [(name, *values) for name, values in comparison["options"].items()],
    }
    return rendered("comparison.html.j2", values)


def _title(comparison: Comparison) -> str:
    data = comparison["data"] or {}
    on = " ".join(str(data[key]) for key in ("validation", "dataset_config") if data.get(key))
    return f"{comparison['metric']} of {comparison['task']}{f' on {on}' if on else ''}"


def _note(comparison: Comparison) -> str:
    points = comparison["points"]
    notes = [
        f"{'Higher' if comparison['mode'] == 'max' else 'Lower'} is better; *: Pareto-optimal, score against speed-up "
        "and against size.",
        f"ms: median time of a batch of {comparison['shape']}, measured in the run itself; faster: measured speed-up, "
        "by which runs are compared, as a machine is busier in one run than in another.",
    ]
    if any(point["score_spread"] is not None for point in points):
        notes.append("Runs that differ in their seed only are one row: means, and ± the score's standard deviation.")
    if not all(point["settled"] for point in points):
        notes.append(f"{UNSETTLED}: the speed-up is not settled.")
    if any(point["collapsed"] for point in points):
        notes.append("collapsed: next to nothing is left of the network, so it is not compared.")
    if comparison["machines"] > 1:
        notes.append(f"Latencies are from {comparison['machines']} machines and are not compared.")
    return " ".join(notes)


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    several = len({point["model"] for point in comparison["points"]}) > 1
    for point in comparison["points"]:
        kept = f"{100 * point['density']:.1f} %"
        spread = point["score_spread"]
        interval = Interval(low=None, high=None, settled=point["settled"])
        faster = None if point["speedup"] is None else times_faster(point["speedup"], interval)
        yield (
            point["name"],
            f"{point['strategy']}, {point['model']}" if several else point["strategy"],
            ", ".join(map(str, point["seeds"])) or "–",
            f"{kept}, collapsed" if point["collapsed"] else kept,
            f"{point['score']:.2f}" + ("" if spread is None else f" ± {spread:.2f}"),
            "–" if point["latency_ms"] is None else f"{point['latency_ms']:.2f}",
            _cell(point, "latency_ms", faster),
            _cell(point, "bytes", None if point["bytes"] is None else quantity(point["bytes"])),
        )


def _cell(point: Point, cost: Cost, text: str | None) -> str:
    return "–" if text is None else f"{text}{' *' if _best(point, cost) else ''}"


def _best(point: Point, cost: Cost) -> bool:
    return point["beaten"].get(cost) is False


def _links(point: Point, pages: Mapping[str, str]) -> Markup:
    """A point's runs, each a link to its page if it has one."""
    if point["kind"] == "dense":
        return Markup.escape(point["name"])
    link = Markup('<a href="{}">{}</a>')
    return Markup("<br>").join(link.format(pages[run], run) if run in pages else run for run in point["runs"])


def _by_value(values: Sequence[str]) -> str:
    """The values of an option, each with the numbers of its rows."""
    places: dict[str, list[str]] = {}
    for place, value in enumerate(values, 1):
        places.setdefault(value, []).append(str(place))
    return "; ".join(f"{value} ({', '.join(at)})" for value, at in places.items())


def _plane(comparison: Comparison, cost: Cost, axis: str, note: str) -> Figure:
    """Score against one cost; points have their numbers in the table, and the colour of their strategy."""
    strategies = list(dict.fromkeys(point["strategy"] for point in comparison["points"] if point["kind"] != "dense"))
    colours = {strategy: f"kind-{place % COLOURS}" for place, strategy in enumerate(strategies)}
    numbered = [
        (place, point) for place, point in enumerate(comparison["points"], 1) if cost_of(point, cost) is not None
    ]
    divisor = 1e6 if cost == "bytes" else 1.0
    marks = [
        Dot(
            str(place),
            float(cost_of(point, cost) or 0) / divisor,
            point["score"],
            "dense" if point["kind"] == "dense" else colours[point["strategy"]],
            _best(point, cost),
        )
        for place, point in numbered
    ]
    best = _names([(place, point) for place, point in numbered if _best(point, cost)])
    legend = [(colour, strategy) for strategy, colour in colours.items()]
    return Figure(
        f"Against {axis.partition(' (')[0]}",
        dots(cost, f"{comparison['metric']} against {axis}", f"Pareto-optimal: {best}.", marks, axis=axis),
        note=f"Numbers are those of the table. The line connects the Pareto-optimal models. {note}".rstrip(),
        legend=[*legend, *([("dense", "dense")] if any(point["kind"] == "dense" for _, point in numbered) else [])],
    )


def _names(numbered: Sequence[tuple[int, Point]]) -> str:
    return ", ".join(f"{place} ({point['name']}, {point['score']:.2f})" for place, point in numbered)
