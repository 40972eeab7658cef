"""The strategy's groups in an optimizer that is there already, and its schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_families import padded_inputs, tiny
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from transformers import get_cosine_schedule_with_warmup

from bplightning.contracts.capabilities import Staged
from bplightning.contracts.strategy import Progress
from bplightning.errors import UserError
from bplightning.integrations.attachment import OWNED_AS, STATE_FILE, Attachment
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.movement import Movement

STEPS = 20
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 4, STEPS),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 3),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "one-cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [1e-3, 1e-4], total_steps=STEPS),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-3, step_size_up=5, cycle_momentum=False),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, STEPS)],
        milestones=[5],
    ),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scores_learn_as_fast_as_the_strategy_says_in_the_rhythm_of_the_weights(name: str) -> None:
    model = tiny("bert")
    attachment = Attachment(Movement(score_learning_rate=0.02), model, model)
    frozen = torch.nn.Parameter(torch.zeros(1))  # a group that is not the model's
    optimizer = SGD([{"params": [frozen], "lr": 0.5}, {"params": list(model.parameters())}], lr=1e-3, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    attachment.join(optimizer, total_steps=STEPS, schedulers=[scheduler])
    *_, weights, scores = optimizer.param_groups
    peak = 1e-4 if name == "one-cycle" else 1e-3 if name != "cyclic" else weights["initial_lr"]
    seen = set()
    for _ in range(STEPS - 1):
        assert scores["lr"] / 0.02 == pytest.approx(weights["lr"] / peak)
        seen.add(round(weights["lr"], 9))
        optimizer.step()
        scheduler.step(*([1.0] if name == "plateau" else []))
    assert len(seen) > 2


def test_a_state_that_was_saved_fits_again() -> None:
    states = []
    for _ in range(2):
        model = tiny("bert")
        attachment = Attachment(Movement(), model, model)
        optimizer = AdamW(model.parameters(), lr=1e-3)
        scheduler = SCHEDULERS["lambda"](optimizer)
        attachment.join(optimizer, total_steps=STEPS, schedulers=[scheduler])
        for saved, part in zip(states, (optimizer, scheduler), strict=False):
            part.load_state_dict(saved)
        model(**padded_inputs("right")).start_logits.sum().backward()
        optimizer.step()
        scheduler.step()
        states = [optimizer.state_dict(), scheduler.state_dict()]
    assert scheduler.last_epoch == 2


def test_each_parameter_is_in_one_group_however_often_it_joins() -> None:
    model = tiny("bert")
    attachment = Attachment(Movement(score_learning_rate=0.02), model, model)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(2):
        attachment.join(optimizer, total_steps=STEPS)
    weights, scores = optimizer.param_groups
    assert sorted(id(p) for group in optimizer.param_groups for p in group["params"]) == sorted(
        id(p) for p in model.parameters()
    )
    assert {id(p) for p in scores["params"]} == {id(p) for p in attachment.strategy.parameters()}
    assert (scores["lr"], scores["weight_decay"]) == (0.02, 0.0)
    assert (weights["lr"], weights["weight_decay"]) == (1e-3, 0.1)


def test_a_strategy_that_learns_nothing_leaves_the_optimizer_alone() -> None:
    model = tiny("bert")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    attachment = Attachment(Magnitude(), model, model)
    attachment.join(optimizer, total_steps=STEPS)
    attachment.add_penalty()
    assert len(optimizer.param_groups) == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_strategy_that_wants_data_is_refused_where_a_loop_gives_it_none() -> None:
    class Calibrated(Staged):
        def wants_calibration(self, progress: Progress) -> int:
            return 1

    model: Any = tiny("bert")
    with pytest.raises(UserError, match=r"Calibrated needs `calibrate`, .* train with `bplightning fit`"):
        Attachment(Calibrated(), model, model)


def test_a_state_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    class Renamed(Movement):
        older_names: ClassVar = {"once": "masks"}

    model = tiny("bert")
    attachment = Attachment(Renamed(), model, model)
    attachment.save_state(tmp_path)
    state = torch.load(tmp_path / STATE_FILE)
    older = {name.replace(f"{OWNED_AS}.masks.", f"{OWNED_AS}.once."): value for name, value in state.items()}
    assert older.keys() != state.keys()
    torch.save(older, tmp_path / STATE_FILE)
    attachment.load_state(tmp_path)
