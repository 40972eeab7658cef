"""The contract, and what Taylor pruning promises beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from taylor_pruning import TaylorPruning

from bplightning import Progress, Target, UserError
from bplightning.plugins import STRATEGIES, load
from bplightning.testing import StrategyCase, StrategyContract
from bplightning.testing.tiny_model import padded_inputs


class TestTaylorPruning(StrategyContract):
    strategy = TaylorPruning
    options = ({}, {"target": Target(density=0.25), "memory": 0.0})


def test_the_entry_point_leads_to_it() -> None:
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    class_path = project["entry-points"][STRATEGIES]["taylor-pruning"].replace(":", ".")
    assert load(STRATEGIES, class_path) is TaylorPruning


def test_importance_is_what_the_loss_changes_by() -> None:
    """Against the loss itself: scaling a unit's three slices by 1 - e changes it by e times its importance."""
    model, strategy, layout = StrategyCase(TaylorPruning, {"memory": 0.0}).attached()
    model.double()

    def loss() -> torch.Tensor:
        return model(**padded_inputs(seed=0)).start_logits.square().sum()

    before = loss()
    before.backward()
    strategy.after_optimizer_step()
    group, tiny = layout.feed_forward[1], 1e-6
    for unit in range(3):
        slices = [up.weight(model)[unit] for up in group.up] + [group.down.weight(model)[:, unit]]
        with torch.no_grad():
            for each in slices:
                each.mul_(1 - tiny)
            change = (loss() - before).abs() / tiny
            for each in slices:
                each.div_(1 - tiny)
        assert strategy.importance("encoder-1-feed_forward")[unit] == pytest.approx(float(change), rel=1e-3)


def test_the_least_important_go_whatever_their_layer_and_stay_away() -> None:
    _, strategy, _ = StrategyCase(TaylorPruning, {"target": Target(density=0.5)}).attached()
    names = "encoder-0-feed_forward", "encoder-1-feed_forward"
    for name, value in zip(names, (1.0, 2.0), strict=True):
        strategy.importance(name).fill_(value)
    strategy.advance(Progress(98, 100, warmup_steps=1))
    assert [float(strategy.masks[name].kept.float().mean()) for name in names] == [0.0, 1.0]
    strategy.importance(names[0]).fill_(9.0)
    strategy.prune(1.0, steps_after=0)
    assert not strategy.masks[names[0]].kept.any()


def test_a_step_that_was_skipped_teaches_nothing() -> None:
    model, strategy, _ = StrategyCase(TaylorPruning, {}).attached()
    model(**padded_inputs(seed=0)).start_logits.sum().backward()
    strategy.after_optimizer_step()
    before = {name: value.clone() for name, value in strategy.state_dict().items()}
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(torch.inf)
    strategy.after_optimizer_step()
    assert all(torch.equal(value, before[name]) for name, value in strategy.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"), [({"target": Target(flops=0.5)}, "cannot prune to"), ({"memory": 1}, "memory is 1")]
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaylorPruning(**options)
