"""The cubic schedule."""

from __future__ import annotations

import pytest

from bplightning.contracts.schedule import cubic
from bplightning.contracts.strategy import Progress
from bplightning.contracts.window import PruningWindow


def test_the_published_squad_schedule() -> None:
    # SQuAD, block pruning: T = 110,640 optimizer steps, W = 5,400, warm-ups 1 and 10, threshold 0 -> 0.1.
    window = PruningWindow(initial_warmup=1, final_warmup=10)
    start, end = window.steps(Progress(0, total_steps=110_640, warmup_steps=5_400))
    assert (start, end) == (5_400, 56_640)
    at = {
        step: cubic(step=step, start=start, end=end, initial=0.0, final=0.1)
        for step in (0, 5_400, 31_020, 56_640, 110_640)
    }
    assert at == pytest.approx({0: 0.0, 5_400: 0.0, 31_020: 0.1 * (1 - 0.5**3), 56_640: 0.1, 110_640: 0.1})


def test_density_falls_with_the_same_formula() -> None:
    values = [cubic(step=step, start=2, end=6, initial=1.0, final=0.2) for step in range(8)]
    assert values == pytest.approx([1.0, 1.0, 1.0, 0.2 + 0.8 * 0.75**3, 0.3, 0.2 + 0.8 * 0.25**3, 0.2, 0.2])
