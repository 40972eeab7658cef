"""Timing calls side by side, and comparing their times.

Calls that are compared are timed in short blocks within one run, in an order that is reversed each round. A ratio is
the median of the paired ratios. So a machine that is slow for a while slows down all calls alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import TypeVar

from torch.utils.benchmark import timer

from bplightning.measuring.records import Speedup

Name = TypeVar("Name", bound=Hashable)

OUTSIDE = 40
"""One experiment in 40 has its true median below the interval, and one above it: 95 % confidence."""

INTERVAL_ROUNDS = 6
"""Fewest rounds of which the median has a 95 % confidence interval."""

STEADY_ROUNDS = 20
"""Fewest rounds after which a narrow interval is trusted: with few, it may be narrow by chance."""

CONTRADICTION = 0.1
"""Part of a ratio by which the ratio of the two medians may lie outside its interval."""


@dataclass(frozen=True)
class Times:
    """The times of one call.

    Attributes:
        rounds_ms: Milliseconds of one pass, as the mean of a block, with one entry per round; the entries of calls that
            were timed together are pairs.
        passes_ms: Milliseconds of each single pass.
    """

    rounds_ms: tuple[float, ...]
    passes_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median over the passes, milliseconds."""
        return median(self.passes_ms)

    @property
    def p90_ms(self) -> float:
        """90th percentile over the passes, milliseconds."""
        if len(self.passes_ms) == 1:
            return self.passes_ms[0]
        return quantiles(self.passes_ms, n=10, method="inclusive")[-1]


@dataclass(frozen=True)
class Middle:
    """A median with its confidence interval.

    Attributes:
        value: The median.
        low: Lower end of its 95 % confidence interval; `None` for fewer than six values, which have none.
        high: Upper end of it.
    """

    value: float
    low: float | None
    high: float | None

    def within(self, tolerance: float) -> bool:
        """Whether half the interval is at most `tolerance` times the value."""
        if self.low is None or self.high is None:
            return False
        return (self.high - self.low) / 2 <= tolerance * abs(self.value)


def side_by_side(
    calls: Mapping[Name, Callable[[], object]],
    *,
    seconds: float,
    block_ms: float = 20.0,
    min_rounds: int = 5,
    enough: Callable[[Mapping[Name, Times]], bool] | None = None,
    between: Callable[[float], object] = lambda spent: None,
) -> dict[Name, Times]:
    """Time calls in turns.

    Args:
        calls: Name to the function to time.
        seconds: Time spent, including warm-up, in seconds. Slow calls take longer, because at least `min_rounds` rounds
            are run.
        block_ms: Shortest block of one call's passes, in milliseconds: fast calls run several times in a block.
        min_rounds: Fewest rounds; in each round every call runs one block.
        enough: Whether the times so far suffice, asked less and less often; by default all of `seconds` is spent.
        between: Called after each round with the seconds spent; its own time is not measured.

    Returns:
        Name to times; all calls have the same number of rounds.
    """
    start = timer()
    count = {}
    for name, call in calls.items():
        _passes(call, 2)  # allocators, caches and kernel selection settle
        once = _passes(call, 1)[0]
        count[name] = max(1, math.ceil(block_ms / max(once, 1e-6)))
    blocks: dict[Name, list[list[float]]] = {name: [] for name in calls}
    order = list(calls)
    done, asked = 0, min_rounds
    while done < min_rounds or timer() - start < seconds:
        for name in order:
            blocks[name].append(_passes(calls[name], count[name]))
        order.reverse()
        done += 1
        between(timer() - start)
        if enough is not None and done >= asked:
            if enough(_times(blocks)):
                break
            asked = done + max(2, done // 10)  # always after the same number of rounds in both orders
            asked += asked % 2
    return _times(blocks)


def paired_ratio(reference: Times, other: Times) -> Middle:
    """How many times faster a call is than another one that it was timed together with.

    Args:
        reference: Times of the reference.
        other: Times of the call, from the same call of `side_by_side`.

    Returns:
        The median over the rounds of reference time / other time.
    """
    return middle([a / b for a, b in zip(reference.rounds_ms, other.rounds_ms, strict=True)])


def speedup_of(reference: Times, other: Times, *, tolerance: float) -> Speedup:
    """How many times faster a call is than another one that it was timed together with, and whether that is settled.

    It is settled after `STEADY_ROUNDS` rounds, where its interval is narrow, and where the medians of both times, which
    are printed next to it, do not contradict it. They do on a machine that was busy in some rounds only.

    Args:
        reference: Times of the reference.
        other: Times of the call, from the same call of `side_by_side`.
        tolerance: Largest half of the confidence interval, as a fraction of the ratio.
    """
    ratio = paired_ratio(reference, other)
    medians = reference.median_ms / other.median_ms
    settled = (
        len(other.rounds_ms) >= STEADY_ROUNDS
        and ratio.within(tolerance)
        and ratio.low is not None
        and ratio.high is not None
        and ratio.low - CONTRADICTION * ratio.value <= medians <= ratio.high + CONTRADICTION * ratio.value
    )
    return Speedup(ratio=ratio.value, low=ratio.low, high=ratio.high, settled=settled)


def middle(values: Sequence[float]) -> Middle:
    """The median of independent values with its confidence interval, whatever their distribution.

    The interval goes from one order statistic to its counterpart: the number of values below the true median has a
    binomial distribution, as the number of heads in coin tosses.

    Args:
        values: At least one.

    >>> middle([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0])
    Middle(value=5.0, low=2.0, high=8.0)
    """
    ordered = sorted(values)
    outside = _outside(len(ordered))
    low, high = (ordered[outside - 1], ordered[-outside]) if outside else (None, None)
    return Middle(median(ordered), low, high)


def _outside(count: int) -> int:
    """Number of the order statistic, counted from either end, at which the interval ends; 0 where there is none."""
    rank, ways, below = 0, 1, 1  # whole numbers do not overflow
    while OUTSIDE * below <= 2**count:
        ways = ways * (count - rank) // (rank + 1)
        rank += 1
        below += ways
    return rank


def _passes(call: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each of `count` passes; torch's timer waits for the accelerator before it reads the clock."""
    took = []
    before = timer()
    for _ in range(count):
        call()
        after = timer()
        took.append(1000 * (after - before))
        before = after
    return took


def _times(blocks: Mapping[Name, Sequence[Sequence[float]]]) -> dict[Name, Times]:
    return {
        name: Times(tuple(fmean(block) for block in own), tuple(each for block in own for each in block))
        for name, own in blocks.items()
    }
