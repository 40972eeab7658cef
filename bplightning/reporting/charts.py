"""Charts as SVG: lines over steps, pairs of bars, histograms over time. Colours are classes of the page's style sheet.

All are `WIDTH` units wide, about the width of a phone, so that their texts have the same size everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from markupsafe import Markup

from bplightning.reporting.label_places import Box, label_boxes
from bplightning.reporting.svg import el, picture, written

WIDTH = 420.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 20.0, 10.0, 34.0
"""Margins of charts with axes."""

FAR = 18.0
"""Distance from which a label is connected with its point."""

MARKED = 15
"""Most points of a line that still gets a mark at each point."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """Maps values to coordinates.

    Attributes:
        low: The lowest value.
        high: The highest value, above `low`.
        start: Coordinate of `low`.
        end: Coordinate of `high`.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """A few round values from `low` to `high`.

    >>> ticks(0, 100, 4), ticks(3, 560), ticks(-0.2, 0.31, 4)
    ([0.0, 25.0, 50.0, 75.0, 100.0], [200.0, 400.0], [-0.2, 0.0, 0.2])
    """
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 10) + 0.0 for place in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    name: str,
    title: str,
    words: str,
    series: Sequence[tuple[str, Points]],
    *,
    bounds: tuple[float, float],
    unit: str = "",
    height: float = 240.0,
) -> Markup:
    """Lines over optimizer steps.

    Args:
        name: The picture's name in the page.
        title: Its title.
        words: Description of what it shows.
        series: Class and points, ascending, of each line.
        bounds: Lowest and highest value of the vertical axis.
        unit: Unit written after its numbers.
        height: Height of the picture.
    """
    steps = [step for _, points in series for step, _ in points]
    first, last = min(0.0, *steps), max(*steps, 1.0)
    x = Scale(first, last, LEFT, WIDTH - RIGHT)
    y = Scale(*bounds, height - BOTTOM, TOP)
    parts = [*_rules(y, unit), *_foot(x, height, "optimizer steps")]
    for kind, points in series:
        places = " ".join(f"{written(x(step))},{written(y(value))}" for step, value in points)
        parts.append(el("polyline", {"class": f"line {kind}", "points": places}))
        for step, value in points if len(points) <= MARKED else ():
            parts.append(el("circle", {"class": kind, "cx": x(step), "cy": y(value), "r": 3}))
    return picture(name, (WIDTH, height), title, words, parts)


@dataclass(frozen=True)
class Pair:
    """Two values of one kind.

    Attributes:
        label: What they measure.
        note: A comparison of both, written next to the label.
        dense: Value of the dense model, or `None`.
        compact: Value of the compact model.
        texts: Both values as text.
    """

    label: str
    note: str
    dense: float | None
    compact: float
    texts: tuple[str, str]


def paired_bars(name: str, title: str, words: str, pairs: Sequence[Pair]) -> Markup:
    """Horizontal bars, dense above compact; each pair has its own scale.

    Args:
        name: The picture's name in the page.
        title: Its title.
        words: Description of what it shows.
        pairs: The pairs.
    """
    parts, top = [], 0.0
    for pair in pairs:
        longest = max(pair.dense or 0.0, pair.compact) or 1.0
        parts.append(el("text", {"class": "strong", "x": 0, "y": top + 13}, pair.label))
        parts.append(el("text", {"class": "strong accent", "x": WIDTH, "y": top + 13, "text-anchor": "end"}, pair.note))
        top += 20
        for kind, value, text in (("dense", pair.dense, pair.texts[0]), ("compact", pair.compact, pair.texts[1])):
            if value is not None:
                length = max(1.0, value / longest * (WIDTH - 92))
                parts.append(el("rect", {"class": kind, "x": 0, "y": top, "width": length, "height": 12, "rx": 2}))
                parts.append(el("text", {"x": length + 6, "y": top + 10.5}, text))
                top += 16
        top += 14
    return picture(name, (WIDTH, top - 8), title, words, parts)


@dataclass(frozen=True)
class Ridge:
    """One histogram.

    Attributes:
        label: Its step.
        low: Lowest value.
        high: Highest value.
        pruned: Counts of pruned entries in bars of equal width from `low` to `high`.
        kept: The same for kept entries.
    """

    label: str
    low: float
    high: float
    pruned: Sequence[int]
    kept: Sequence[int]


def ridges(name: str, title: str, words: str, rows: Sequence[Ridge], *, kind: str, axis: str) -> Markup:
    """Histograms under one another, each with its own height.

    Args:
        name: The picture's name in the page.
        title: Its title.
        words: Description of what it shows.
        rows: From the first to the last.
        kind: Class of kept entries.
        axis: Name of the horizontal axis.
    """
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    if high <= low:
        low, high = low - 1, high + 1
    x = Scale(low, high, 62, WIDTH - RIGHT)
    spacing, tall = 27.0, 28.0
    height = TOP + tall + spacing * (len(rows) - 1) + BOTTOM
    parts = _foot(x, height, axis)
    for place, row in enumerate(rows):
        base = TOP + tall + spacing * place
        tallest = max(a + b for a, b in zip(row.pruned, row.kept, strict=True)) or 1
        parts.append(el("line", {"class": "rule", "x1": x.start, "x2": x.end, "y1": base, "y2": base}))
        parts.append(el("text", {"x": x.start - 8, "y": base, "text-anchor": "end"}, row.label))
        sums = [a + b for a, b in zip(row.pruned, row.kept, strict=True)]
        for of, counts in (("pruned", sums), (kind, row.kept)):
            heights = [count / tallest * (tall - 4) for count in counts]
            parts.append(el("path", {"class": f"area {of}", "d": _steps(heights, x(row.low), x(row.high), base)}))
    return picture(name, (WIDTH, height), title, words, parts)


def _steps(heights: Sequence[float], start: float, end: float, base: float) -> str:
    """The outline of bars side by side, with a minimal width."""
    width = max((end - start) / len(heights), 1.5 if end - start < 1 else 0.0)
    path = [f"M{written(start)} {written(base)}"]
    for place, height in enumerate(heights):
        path.append(f"V{written(base - height)}H{written(start + (place + 1) * width)}")
    return f"{''.join(path)}V{written(base)}Z"


def _rules(y: Scale, unit: str) -> Iterator[Element]:
    """Horizontal lines with their numbers."""
    for value in ticks(y.low, y.high, 4):
        place = y(value)
        yield el("line", {"class": "rule", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": place, "y2": place})
        yield el("text", {"x": LEFT - 6, "y": place + 4, "text-anchor": "end"}, f"{value:g}{unit}")


def _foot(x: Scale, height: float, axis: str) -> list[Element]:
    """The horizontal axis."""
    base = height - BOTTOM
    parts = [el("text", {"class": "muted", "x": x.end, "y": height - 3, "text-anchor": "end"}, axis)]
    for value in ticks(x.low, x.high, 5):
        parts.append(el("line", {"class": "rule", "x1": x(value), "x2": x(value), "y1": base, "y2": base + 4}))
        parts.append(el("text", {"x": x(value), "y": base + 16, "text-anchor": "middle"}, f"{value:,g}"))
    return parts


@dataclass(frozen=True)
class Dot:
    """One point of a plane.

    Attributes:
        label: Text next to it.
        x: Its cost.
        y: Its score.
        kind: Its class.
        best: Whether it is Pareto-optimal.
    """

    label: str
    x: float
    y: float
    kind: str
    best: bool


def dots(name: str, title: str, words: str, marks: Sequence[Dot], *, axis: str, height: float = 280.0) -> Markup:
    """Points in a plane, with a line through the Pareto-optimal ones; the horizontal axis begins at 0.

    Args:
        name: The picture's name in the page.
        title: Its title.
        words: Description of what it shows.
        marks: The points.
        axis: Name of the horizontal axis.
        height: Height of the picture.
    """
    lowest, highest = min(mark.y for mark in marks), max(mark.y for mark in marks)
    room = 0.1 * (highest - lowest) or 1.0
    x = Scale(0.0, 1.08 * max(mark.x for mark in marks) or 1.0, LEFT, WIDTH - RIGHT)
    y = Scale(lowest - room, highest + room, height - BOTTOM, TOP)
    edge = sorted((mark.x, mark.y) for mark in marks if mark.best)
    places = " ".join(f"{written(x(cost))},{written(y(score))}" for cost, score in edge)
    parts = [*_rules(y, ""), *_foot(x, height, axis), el("polyline", {"class": "line edge", "points": places})]
    for mark in marks:
        at = {"cx": x(mark.x), "cy": y(mark.y), "r": 6 if mark.best else 4}
        parts.append(el("circle", {"class": mark.kind, **({} if mark.best else {"fill-opacity": 0.45}), **at}))
    within = Box(LEFT, 0.0, WIDTH, height - BOTTOM)
    places_of = label_boxes([(x(mark.x), y(mark.y), mark.label) for mark in marks], within)
    for mark, box in zip(marks, places_of, strict=True):
        middle = (box.top + box.bottom) / 2
        if abs(middle - y(mark.y)) > FAR or not box.left - FAR < x(mark.x) < box.right + FAR:
            nearest = min(max(x(mark.x), box.left), box.right)
            line = {"x1": x(mark.x), "y1": y(mark.y), "x2": nearest, "y2": middle}
            parts.append(el("line", {"class": "rule", **line}))
        parts.append(el("text", {"x": box.left, "y": middle + 4}, mark.label))
    return picture(name, (WIDTH, height), title, words, parts)
