"""Uniform targets: as many heads and units in every layer of a stack, which a portable checkpoint holds for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from spread_scores import spread_scores
from tiny_families import tiny

from bplightning import Progress, PrunableLayout, UserError, compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.compaction.portable import as_portable
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.movement import Movement
from bplightning.strategies.one_shot_taylor import OneShotTaylor
from bplightning.strategies.post_training.post_training import PostTraining
from bplightning.strategies.soft_movement import SoftMovement
from bplightning.strategies.ziplm.ziplm import ZipLM
from bplightning.testing.strategy_contract import calibrate

WHOLE = {"attention": "head", "feed_forward": "unit"}
HALF = {"target": Target(density=0.5, uniform=True), "granularity": WHOLE, "window": PruningWindow(final_warmup=1.0)}
STRATEGIES: dict[str, Callable[[], Any]] = {
    "one-shot-taylor": lambda: OneShotTaylor(target=Target(flops=0.6, uniform=True)),
    "post-training": lambda: PostTraining(target=Target(flops=0.6, uniform=True), tune=False),
    "soft-movement": lambda: SoftMovement(**HALF),
    "movement": lambda: Movement(**HALF),
}


def kept_of(layers: list[tuple[str, tuple[int, ...], int]]) -> dict[str, set[int]]:
    """How many each kind of sub-layer keeps, over the layers."""
    counts: dict[str, set[int]] = {}
    for name, kept, _ in layers:
        stack, _, kind = name.split(".")
        counts.setdefault(f"{stack} {kind}", set()).add(len(kept))
    return counts


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_layer_keeps_as_many(name: str) -> None:
    model, strategy = tiny("mistral", num_key_value_heads=4, intermediate_size=32), STRATEGIES[name]()
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    if isinstance(strategy, SoftMovement | Movement):
        spread_scores(strategy, seed=1)
        for step in range(21):
            strategy.advance(Progress(step, 20, warmup_steps=2))
    else:
        calibrate(model, strategy)
        strategy.advance(Progress(1, 1, warmup_steps=0))
    grids = [mask.kept.clone() for mask in strategy.all_masks]
    strategy.harden(layout)
    plan = CompactionPlan.of(model)
    for counts in (kept_of(plan.heads), kept_of(plan.units)):
        assert all(len(each) == 1 for each in counts.values())
    assert any(0 < int(grid.sum()) < grid.numel() for grid in grids)
    assert any(not torch.equal(grids[0], grid) for grid in grids[1:3])  # as many, not the same
    smaller = compact(model, plan)
    padded = as_portable(smaller).model
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (smaller, padded)]
    assert sizes[0] == sizes[1]


def test_units_of_a_hybrid_are_uniform_while_blocks_of_heads_come_as_they_come() -> None:
    blocks = {"attention": "4x4", "feed_forward": "unit"}
    strategy = Hybrid(target=Target(density=0.5, uniform=True), granularity=blocks)
    strategy.attach(PrunableLayout.of(tiny("bert")))
    spread_scores(strategy, seed=1)
    strategy.set_grids(strategy.grids_above(-0.7))
    units = {int(mask.kept.sum()) for mask in strategy.all_masks if mask.role == "feed_forward"}
    assert len(units) == 1
    assert 0 < units.pop() < 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoFi(target=Target(density=0.5, uniform=True)), "target.uniform is true, and cofi chooses by layer"),
        (lambda: ZipLM(target=Target(latency_speedup=2, uniform=True)), "ziplm chooses by layer"),
        (
            lambda: Magnitude(Target(uniform=True), WHOLE, scope="global"),
            "uniform is true and scope is 'global'",
        ),
        (lambda: Magnitude(Target(uniform=True)).attach(PrunableLayout.of(tiny("bert"))), "granularity is element"),
    ],
)
def test_what_cannot_be_uniform_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
