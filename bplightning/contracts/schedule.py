"""Schedules over optimizer steps, as pure functions."""

from __future__ import annotations

from bplightning.errors import UserError


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


def pruning_window(
    *, total_steps: int, warmup_steps: int, initial_warmup: float, final_warmup: float, section: str = "strategy"
) -> tuple[int, int]:
    """First and last optimizer step of the pruning schedule.

    Args:
        total_steps: Optimizer steps of the run.
        warmup_steps: Optimizer steps of the learning-rate warm-up, ``W``.
        initial_warmup: Length of the part before pruning, as a multiple of ``W``.
        final_warmup: Length of the part after it, as a multiple of ``W``.
        section: What of the configuration the two are of, for the message.

    Raises:
        UserError: Nothing is left between the two.

    >>> pruning_window(total_steps=1000, warmup_steps=50, initial_warmup=1, final_warmup=10)
    (50, 500)
    """
    start = round(initial_warmup * warmup_steps)
    end = total_steps - round(final_warmup * warmup_steps)
    if not 0 <= start < end:
        raise UserError(
            f"the pruning schedule has no step left: of {total_steps} optimizer steps, initial_warmup "
            f"{initial_warmup:g} and final_warmup {final_warmup:g} times the warm-up of {warmup_steps} steps leave "
            f"{end - start}. Train longer, or make model.warmup, {section}.initial_warmup or {section}.final_warmup "
            "smaller."
        )
    return start, end
