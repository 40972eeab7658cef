"""The cubic schedule and its window."""

from __future__ import annotations

import pytest

from bplightning.contracts.schedule import cubic, pruning_window
from bplightning.errors import UserError


def test_the_published_squad_schedule() -> None:
    # SQuAD, block pruning: T = 110,640 optimizer steps, W = 5,400, warm-ups 1 and 10, threshold 0 -> 0.1.
    start, end = pruning_window(total_steps=110_640, warmup_steps=5_400, initial_warmup=1, final_warmup=10)
    assert (start, end) == (5_400, 56_640)
    at = {
        step: cubic(step=step, start=start, end=end, initial=0.0, final=0.1)
        for step in (0, 5_400, 31_020, 56_640, 110_640)
    }
    assert at == pytest.approx({0: 0.0, 5_400: 0.0, 31_020: 0.1 * (1 - 0.5**3), 56_640: 0.1, 110_640: 0.1})


def test_density_falls_with_the_same_formula() -> None:
    values = [cubic(step=step, start=2, end=6, initial=1.0, final=0.2) for step in range(8)]
    assert values == pytest.approx([1.0, 1.0, 1.0, 0.2 + 0.8 * 0.75**3, 0.3, 0.2 + 0.8 * 0.25**3, 0.2, 0.2])


@pytest.mark.parametrize(("initial", "final"), [(5, 6), (1, 10), (0, 10)])
def test_no_step_left_is_an_error(initial: float, final: float) -> None:
    with pytest.raises(UserError, match=r"of 100 optimizer steps, initial_warmup .* leave .* Train longer"):
        pruning_window(total_steps=100, warmup_steps=10, initial_warmup=initial, final_warmup=final)
