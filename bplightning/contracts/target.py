"""How much a strategy keeps: one value object for all strategies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from bplightning.errors import UserError

KINDS = ("density", "flops", "latency_speedup")


@dataclass(frozen=True)
class Target:
    """How much is kept, in one of three terms.

    Args:
        density: Fraction of the prunable weights to keep, in (0, 1].
        flops: Share of the dense model's floating-point operations to keep, in (0, 1].
        latency_speedup: How many times faster than the dense model the pruned one is to be, as measured, above 1. A
            list of ascending numbers, such as [1.5,2,3], asks for a model of each size, where a strategy can make them.
        latency_table: File written by the verb `latency-table`, for `latency_speedup`: it fixes the machine and the
            shape that the speed-up is meant for. Default: a table is measured when pruning begins, which takes a minute
            or more, on the device that trains, for one row of 128 tokens.
        uniform: Keep the same number of heads, and of units, in every layer of a stack, so that `compact --portable`
            costs nothing. Default: each layer keeps what it needs.

    Raises:
        UserError: More than one is given, one is out of its range, or there is a table without `latency_speedup`.

    >>> Target(density=0.25).kind, Target(flops=0.5).value, Target().kind
    ('density', 0.5, None)
    """

    density: float | None = None
    flops: float | None = None
    latency_speedup: float | list[float] | None = None
    latency_table: str | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            told = " and ".join(f"target.{name} is {shown(getattr(self, name))}" for name in given)
            raise UserError(f"{told}, but a model is pruned to one target: give one of them.")
        for name, what in (("density", "fraction of weights"), ("flops", "share of floating-point operations")):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"target.{name} is {value:g}; it is the {what} to keep and must be in (0, 1].")
        if self.latency_speedup is not None and not _ascending(self.speedups):
            several = isinstance(self.latency_speedup, list)
            rule = "a list of numbers above 1, each above the one before" if several else "above 1"
            raise UserError(
                f"target.latency_speedup is {shown(self.latency_speedup)}; it is the dense model's time over the "
                f"pruned one's and must be {rule}."
            )
        if self.latency_table is not None and self.latency_speedup is None:
            raise UserError(
                f"target.latency_table is {self.latency_table!r}, which only a target in time uses: give "
                "target.latency_speedup too, or leave the table out."
            )

    @property
    def kind(self) -> str | None:
        """Which of the three is given; `None` for none."""
        return next((name for name in KINDS if getattr(self, name) is not None), None)

    @property
    def value(self) -> float | list[float] | None:
        """Its value; `None` where none is given."""
        return None if self.kind is None else getattr(self, self.kind)

    @property
    def speedups(self) -> list[float]:
        """The speed-ups asked for, one or several; empty for another kind of target."""
        if self.latency_speedup is None:
            return []
        given = self.latency_speedup if isinstance(self.latency_speedup, list) else [self.latency_speedup]
        return [float(each) for each in given]


NO_TARGET = Target()
"""Nothing asked for: the strategy's own default holds. Frozen, so it can be the default of a parameter."""


def shown(value: object) -> str:
    """A target's value for a message.

    >>> shown(0.25), shown([1.5, 2.0])
    ('0.25', '[1.5, 2]')
    """
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, int | float) else repr(value)


def _ascending(speedups: list[float]) -> bool:
    above = all(math.isfinite(each) and each > 1 for each in speedups)
    return bool(speedups) and above and all(low < high for low, high in pairwise(speedups))
