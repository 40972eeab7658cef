"""Drawing titled tables for the terminal, and writing numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bplightning.measuring.records import Interval

COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
UNSETTLED = "?"
"""Follows a ratio of times that is not settled, see `bplightning.measuring.timing.speedup_of`."""

FLOPS = {"MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12}


def section(title: str, lines: Sequence[str], style: str = "bold") -> RenderableType:
    """Lines under a title."""
    return Group(Text(f"\n{title}", style=style), *(Padding(Text(line), (0, 0, 0, 2)) for line in lines))


def titled_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None
) -> RenderableType:
    """A table under its title; a column whose name begins with ``<`` is aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        right = name.startswith("<")
        table.add_column(
            Text(name.removeprefix("<")),
            justify="right" if right else "left",
            no_wrap=index == 0 or right,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    below = [Padding(Text(caption, style="dim"), (0, 0, 0, 2))] if caption else []
    return Group(Text(f"\n{title}", style="bold"), Padding(table, (0, 0, 0, 2)), *below)


def times_faster(ratio: float, interval: Interval | None = None) -> str:
    """A speed-up as every table, page and plot writes it.

    Args:
        ratio: How many times faster.
        interval: Its interval; `None` where an earlier version did not record it.

    >>> times_faster(1.5), times_faster(1.5, {"low": 1.0, "high": 2.0, "settled": False})
    ('1.50x', '1.50x?')
    """
    return f"{ratio:.2f}x{UNSETTLED if interval is not None and not interval['settled'] else ''}"


def unit_of(value: float | None, units: Mapping[str, float] = COUNTS) -> tuple[str, float]:
    """The largest unit that a value reaches, or the smallest one, with its size."""
    reached = ((name, size) for name, size in units.items() if (value or 0) >= size)
    return max(reached, key=lambda unit: unit[1], default=next(iter(units.items())))


def short(count: float) -> str:
    """A number with its unit.

    >>> short(512), short(10_616_832)
    ('512', '10.62 M')
    """
    unit, divisor = unit_of(count)
    return f"{count / divisor:.2f} {unit}" if unit else f"{count:.0f}"


def per_cent(part: float, whole: float) -> str:
    """A share in per cent.

    >>> per_cent(1, 8)
    '12.5 %'
    """
    return f"{100 * part / whole:.1f} %"


def span(sizes: Sequence[float]) -> str:
    """The lowest and the highest of `sizes`; empty without any."""
    return " to ".join(dict.fromkeys(f"{size:,.0f}" for size in sizes))
