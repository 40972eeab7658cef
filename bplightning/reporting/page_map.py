"""The map of every layer: heads and units kept, and the blocks left inside the heads that stay.

A row of the map is an attention sub-layer with the feed-forward sub-layer after it. Each of its four weights is drawn
with the heads from top to bottom, so one band is one head in all of them: rows of query, key and value, columns of the
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from xml.etree.ElementTree import Element

from markupsafe import Markup

from bplightning.reporting.schema import HeadLayer, Heads, Pattern, Report, UnitLayer
from bplightning.reporting.svg import el, picture, written
from bplightning.reporting.table import heads_kept

SLOT, GAP = 100.0, 8.0
"""Width of one weight in the map, and the space between two."""

NAMES = ("query", "key", "value", "output")

NOTHING = Markup("")


@dataclass(frozen=True)
class MapRow:
    """One row of the map.

    Attributes:
        label: Stack and number of the layer.
        heads: Heads kept, in words; empty where the row has no attention.
        strip: Picture of its heads.
        blocks: Picture of the blocks inside its heads.
        no_heads: Whether all of its heads were removed.
        units: Units kept, in words; empty where the row has no feed-forward sub-layer.
        bar: Picture of its units.
    """

    label: str
    heads: str = ""
    strip: Markup = NOTHING
    blocks: Markup = NOTHING
    no_heads: bool = False
    units: str = ""
    bar: Markup = NOTHING


@dataclass(frozen=True)
class LayerMap:
    """The map.

    Attributes:
        legend: Class and text of each swatch.
        names: Heads of the four weights in a row, empty without patterns.
        rows: Its rows.
        cells: The same numbers as rows of a table: sub-layer, kept, total, indices of heads.
    """

    legend: list[tuple[str, str]]
    names: tuple[str, ...]
    rows: list[MapRow]
    cells: list[tuple[str, str, str, str]]


def layer_map(report: Report) -> LayerMap:
    """The map of a report.

    Args:
        report: A report; without patterns, from an earlier version, the map shows only heads and units.
    """
    patterns = {pattern["name"]: pattern for pattern in report["patterns"]}
    keys = [("attention", "kept"), ("zero", "pruned inside a head that stays"), ("gone", "head removed")]
    cells = [
        (of["name"], str(of["kept"]), str(of["total"]), _listed(of["indices"])) for of in report["heads"]["by_layer"]
    ]
    cells += [(of["name"], f"{of['kept']:,}", f"{of['total']:,}", "") for of in report["units"]["by_layer"]]
    return LayerMap(
        legend=[*(keys if patterns else keys[:1] + keys[2:]), ("feed_forward", "feed-forward units kept")],
        names=NAMES if patterns else (),
        rows=[_row(place, *row, patterns) for place, row in enumerate(_rows(report))],
        cells=cells,
    )


def _rows(report: Report) -> list[tuple[HeadLayer | None, UnitLayer | None]]:
    """Attention and feed-forward sub-layers of the same stack and layer, side by side."""
    layers: dict[str, tuple[list[HeadLayer], list[UnitLayer]]] = {}
    for head in report["heads"]["by_layer"]:
        layers.setdefault(_layer(head["name"]), ([], []))[0].append(head)
    for unit in report["units"]["by_layer"]:
        layers.setdefault(_layer(unit["name"]), ([], []))[1].append(unit)
    return [pair for heads, units in layers.values() for pair in zip_longest(heads, units)]


def _layer(name: str) -> str:
    """Stack and number of a sub-layer's layer: ``encoder.3`` of ``encoder.3.self``."""
    return ".".join(name.split(".")[:2])


def _part(name: str) -> str:
    """The part of a layer's feed-forward network that a sub-layer is, where it has several.

    >>> _part("decoder.3.feed_forward.expert.5"), _part("encoder.3.feed_forward")
    ('expert 5', '')
    """
    return " ".join(name.split(".")[3:])


def _row(place: int, heads: HeadLayer | None, units: UnitLayer | None, patterns: dict[str, Pattern]) -> MapRow:
    sub_layer = heads or units
    assert sub_layer is not None
    stack, number, *kind = sub_layer["name"].split(".")
    label = f"{stack} {number}" + (f", {kind[0]}" if kind[:1] == ["cross"] else "")
    part = "" if units is None else _part(units["name"])
    if heads is None and part:
        label += f", {part}"
    row = MapRow(label)
    if heads is not None:
        words = heads_kept(Heads(kept=heads["kept"], total=heads["total"], by_layer=[heads]))
        row = replace(row, heads=words, strip=_strip(f"heads-{place}", heads), no_heads=not heads["kept"])
        if heads["name"] in patterns and heads["kept"]:
            row = replace(row, blocks=_blocks(f"blocks-{place}", heads, patterns[heads["name"]]))
    if units is not None:
        words = f"{f'{part}: ' if heads and part else ''}{units['kept']:,} of {units['total']:,} units"
        row = replace(row, units=words, bar=_units(place, units))
    return row


def _strip(name: str, heads: HeadLayer) -> Markup:
    """One square per head."""
    kept, size = set(heads["indices"]), 10.0
    across = min(heads["total"], 12)
    squares = []
    for head in range(heads["total"]):
        at = {"x": head % across * size + 0.5, "y": head // across * size + 0.5, "width": size - 2, "height": size - 2}
        squares.append(el("rect", {"class": "attention" if head in kept else "gone", "rx": 1.5, **at}))
    words = (
        f"kept: {_listed(heads['indices'])}; removed: {_listed([h for h in range(heads['total']) if h not in kept])}"
    )
    height = size * (-(-heads["total"] // across) or 1)
    title = f"Heads of {heads['name']}"
    return picture(name, (across * size or size, height), title, words, squares, kind="strip")


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices)) or "none"


def _units(place: int, units: UnitLayer) -> Markup:
    share = units["kept"] / units["total"] if units["total"] else 0.0
    bars = [
        el("rect", {"class": "zero", "x": 0, "y": 0, "width": 220, "height": 10, "rx": 2}),
        el("rect", {"class": "feed_forward", "x": 0, "y": 0, "width": 220 * share, "height": 10, "rx": 2}),
    ]
    words = f"{units['kept']} of {units['total']} units kept, {100 * share:.1f} per cent"
    return picture(f"units-{place}", (220, 10), f"Units of {units['name']}", words, bars)


def _blocks(name: str, heads: HeadLayer, pattern: Pattern) -> Markup:
    """The four weights, with one band per head; removed heads are outlines."""
    kept, total = set(heads["indices"]), heads["total"]
    band, shares = _band_height(pattern, total), []
    parts: list[Element] = []
    for slot, projection in enumerate(NAMES):
        rows = pattern["projections"][projection].split(" ")
        if projection == "output":
            rows = ["".join(column) for column in zip(*rows, strict=True)]
        each = len(rows) // total
        paths: dict[str, list[str]] = {}
        for head in sorted(kept):
            for line, row in enumerate(rows[head * each : (head + 1) * each]):
                top = head * (band + 2) + line * band / each
                for start, end, level in _runs(row):
                    left, right = (slot * (SLOT + GAP) + SLOT * place / len(row) for place in (start, end))
                    corner = f"M{written(left)} {written(top)}H{written(right)}V{written(top + band / each)}"
                    paths.setdefault(level, []).append(f"{corner}H{written(left)}Z")
        shares.append(f"{projection} {_share(rows, kept, each):.0f} per cent")
        for level, runs in sorted(paths.items()):
            look = (
                {"class": "zero"}
                if level == "0"
                else {"class": "attention", "fill-opacity": 0.15 + int(level) * 0.85 / 9}
            )
            parts.append(el("path", {**look, "d": "".join(runs), "shape-rendering": "crispEdges"}))
        for head in range(total):
            if head not in kept:
                at = {
                    "x": slot * (SLOT + GAP) + 0.5,
                    "y": head * (band + 2) + 0.5,
                    "width": SLOT - 1,
                    "height": band - 1,
                }
                parts.append(el("rect", {"class": "gone", **at}))
    words = f"Left inside the heads that stay: {', '.join(shares)}"
    size = 4 * SLOT + 3 * GAP, total * (band + 2) - 2
    return picture(name, size, f"Blocks of {heads['name']}", words, parts)


def _band_height(pattern: Pattern, total: int) -> float:
    """Height of one head: its tiles are squares, if they are small enough."""
    query = pattern["projections"]["query"].split(" ")
    return min(12.0, max(4.0, len(query) / total * SLOT / max(len(query[0]), 1)))


def _runs(row: str) -> list[tuple[int, int, str]]:
    """Start, end and level of each run of equal tiles.

    >>> _runs("0099")
    [(0, 2, '0'), (2, 4, '9')]
    """
    edges = [place for place in range(1, len(row)) if row[place] != row[place - 1]]
    return [(start, end, row[start]) for start, end in zip([0, *edges], [*edges, len(row)], strict=True)]


def _share(rows: Sequence[str], kept: set[int], each: int) -> float:
    """Percentage of the tiles inside these heads that are not all zero."""
    inside = "".join(rows[place] for head in kept for place in range(head * each, (head + 1) * each))
    return 100 * (1 - inside.count("0") / len(inside)) if inside else 0.0
