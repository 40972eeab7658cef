"""Charts as SVG: lines over steps, pairs of bars, histograms over time. Colours are classes, which the page defines.

All are `WIDTH` units wide, about a phone's width, so that words in them have the same size everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from bplightning.reporting.markup import el, picture, written

WIDTH = 420.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 20.0, 10.0, 34.0
"""Margins of what has axes."""

MARKED = 15
"""Points of a line, at most, for each to have a mark."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low: The least value.
        high: The greatest value, above `low`.
        start: Place of `low`.
        end: Place of `high`.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values from `low` to `high`, not many.

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
) -> Element:
    """Lines over optimizer steps.

    Args:
        name: The picture's name in the page.
        title: What it is.
        words: What is to be seen in it.
        series: Class and points, ascending, of each line.
        bounds: Least and greatest value of the vertical axis.
        unit: What is written behind its numbers.
        height: Of the picture.
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
        label: What they are.
        note: What is written beside it.
        dense: The dense model's, or `None`.
        compact: The compact model's.
        texts: Both as they are written.
    """

    label: str
    note: str
    dense: float | None
    compact: float
    texts: tuple[str, str]


def paired_bars(name: str, title: str, words: str, pairs: Sequence[Pair]) -> Element:
    """Horizontal bars, dense over compact, each pair on a scale of its own.

    Args:
        name: The picture's name in the page.
        title: What it is.
        words: What is to be seen in it.
        pairs: What is compared.
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
        label: When it was.
        low: Least value.
        high: Greatest value.
        pruned: Counts of bars of equal width from `low` to `high`, of what is pruned.
        kept: The same of what is kept.
    """

    label: str
    low: float
    high: float
    pruned: Sequence[int]
    kept: Sequence[int]


def ridges(name: str, title: str, words: str, rows: Sequence[Ridge], *, kind: str, axis: str) -> Element:
    """Histograms under one another, each to a height of its own.

    Args:
        name: The picture's name in the page.
        title: What it is.
        words: What is to be seen in it.
        rows: From the first to the last.
        kind: Class of what is kept.
        axis: What the horizontal axis is.
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
    """The outline of bars side by side; those of no width get one."""
    width = max((end - start) / len(heights), 1.5 if end - start < 1 else 0.0)
    path = [f"M{written(start)} {written(base)}"]
    for place, height in enumerate(heights):
        path.append(f"V{written(base - height)}H{written(start + (place + 1) * width)}")
    return f"{''.join(path)}V{written(base)}Z"


def _rules(y: Scale, unit: str) -> Iterator[Element]:
    """Horizontal lines and the numbers they stand for."""
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
        label: What is written beside it.
        x: Its cost.
        y: Its score.
        kind: Its class.
        best: Whether no other one beats it.
    """

    label: str
    x: float
    y: float
    kind: str
    best: bool


def dots(name: str, title: str, words: str, marks: Sequence[Dot], *, axis: str, height: float = 280.0) -> Element:
    """Points in a plane, with a line through the best; the horizontal axis begins at 0.

    Args:
        name: The picture's name in the page.
        title: What it is.
        words: What is to be seen in it.
        marks: The points.
        axis: What the horizontal axis is.
        height: Of the picture.
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
        parts.append(el("text", {"x": x(mark.x) + 9, "y": y(mark.y) + 4}, mark.label))
    return picture(name, (WIDTH, height), title, words, parts)
