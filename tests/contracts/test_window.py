"""When a strategy prunes."""

from __future__ import annotations

import pytest

from bplightning.contracts.strategy import Progress
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError


@pytest.mark.parametrize(("initial", "final"), [(5, 6), (1, 10), (0, 10)])
def test_no_step_left_is_an_error(initial: float, final: float) -> None:
    remedy = r"Train longer, or make model\.warmup, strategy\.window\.initial_warmup or strategy\.window\.final_warmup"
    with pytest.raises(UserError, match=rf"of 100 optimizer steps, initial_warmup .* leave .* {remedy}"):
        PruningWindow(initial, final).steps(Progress(0, total_steps=100, warmup_steps=10))


@pytest.mark.parametrize("name", ["initial_warmup", "final_warmup"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_lengths_below_zero_are_refused(name: str, value: float) -> None:
    with pytest.raises(
        UserError, match=rf"window\.{name} is (-1|nan); it must be 0 or more, in multiples of the learn"
    ):
        PruningWindow(**{name: value})
