"""Schedules over optimizer steps, as pure functions."""

from __future__ import annotations


def cubic(*, step: int, start: int, end: int, initial: float, final: float) -> float:
    """The cubic schedule of movement and block pruning: `initial` up to `start`, `final` from `end` on.

    Between them ``final + (initial - final) * (1 - (step - start) / (end - start))^3``: fast at first, slow at the end
    (Sanh et al. 2020, arXiv 2005.07683, equation 5, after Zhu and Gupta 2017, arXiv 1710.01878).

    Args:
        step: Optimizer steps taken.
        start: Optimizer step up to which the value is `initial`.
        end: Optimizer step from which the value is `final`; greater than `start`.
        initial: First value.
        final: Last value.

    >>> [cubic(step=step, start=0, end=10, initial=1.0, final=0.0) for step in (0, 5, 10, 20)]
    [1.0, 0.125, 0.0, 0.0]
    """
    if step >= end:
        return final
    if step <= start:
        return initial
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** 3
