"""Targets: what is left is what compaction then leaves, and what cannot be reached is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spread_scores import spread_scores
from tiny_families import auto_of, tiny

from bplightning import compact
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.measure import flops
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.shared.size_targets import example_inputs
from bplightning.strategies.shared.targets import size_target
from bplightning.strategies.soft_movement import SoftMovement

POSITIONS = {"max_position_embeddings": 160, "n_positions": 160}
TILES = [("4x4", "unit"), ("head", "unit"), ("row", "column"), ("8x32", "4x8"), ("element", "element")]


def pruned(model_type: str, tiles: tuple[str, str], *, seed: int, **config: Any) -> tuple[float, float, float]:
    """The share of operations foreseen, that of the compact model, and what the strategy says it reached."""
    model = tiny(model_type, **POSITIONS, **config)
    granularity = dict(zip(("attention", "feed_forward"), tiles, strict=True))
    strategy = SoftMovement(target=Target(flops=0.99), granularity=granularity)
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    dense = flops(model, example_inputs(model))
    spread_scores(strategy, seed=seed)
    cut = torch.tensor(-0.8 if tiles[0] == "head" else -0.4)
    foreseen = float(strategy.left()(cut))
    strategy.set_grids(strategy.grids_above(cut))
    reached = strategy.reached()
    strategy.harden(layout)
    return foreseen, flops(compact(model), example_inputs(model)) / dense, reached


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("tiles", TILES, ids="-".join)
def test_operations_left_are_those_of_the_compact_model(tiles: tuple[str, str], seed: int) -> None:
    foreseen, measured, reached = pruned("bert", tiles, seed=seed)
    assert foreseen == pytest.approx(measured, rel=1e-5)
    assert reached == pytest.approx(measured, rel=1e-5)
    assert (tiles[1] != "unit") or 0.1 < measured < 0.95


@pytest.mark.parametrize(
    "model_type",
    ["albert", "bart", "deberta-v2", "distilbert", "gpt2", "llama", "modernbert", "mt5", "opt", "qwen2", "t5", "vit"],
)
def test_operations_left_in_every_kind_of_family(model_type: str) -> None:
    assert auto_of(model_type)
    for tiles in (("4x4", "unit"), ("head", "4x4")):
        foreseen, measured, _ = pruned(model_type, tiles, seed=0)
        assert foreseen == pytest.approx(measured, rel=1e-5)
        assert 0.02 < measured < 0.97


@pytest.mark.parametrize("target", [Target(density=0.3), Target(flops=0.5)])
def test_what_is_left_falls_with_the_cut(target: Target) -> None:
    strategy = SoftMovement(target=target, granularity={"attention": "4x4", "feed_forward": "4x4"})
    strategy.attach(PrunableLayout.of(tiny("bert", **POSITIONS)))
    spread_scores(strategy, seed=0)
    left = strategy.left()
    shares = [float(left(cut)) for cut in torch.linspace(-4, 4, 40)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1.0)
    assert shares[-1] < 0.2


def test_a_cut_that_meets_the_target_is_exact() -> None:
    strategy = SoftMovement(target=Target(flops=0.5), granularity={"attention": "head", "feed_forward": "unit"})
    strategy.attach(PrunableLayout.of(tiny("bert", **POSITIONS, intermediate_size=512)))
    spread_scores(strategy, seed=0)
    strategy.advance(Progress(100, 100, warmup_steps=0))
    assert 0.5 >= strategy.reached() == pytest.approx(0.5, rel=0.04)  # a head is a fortieth
    assert strategy.reached() == pytest.approx(strategy.snap()["after"])


def test_a_target_that_cannot_be_reached_is_refused_by_what_can_be() -> None:
    strategy = Hybrid(target=Target(flops=1e-6), granularity={"attention": "4x4"})
    with pytest.raises(UserError, match=r"target\.flops is 1e-06, which cannot be reached: .* it is [\d.]+\."):
        strategy.attach(PrunableLayout.of(tiny("bert", **POSITIONS)))


@pytest.mark.parametrize("target", [Target(density=1), Target(flops=1)])
def test_a_target_that_keeps_everything_is_refused(target: Target) -> None:
    with pytest.raises(UserError, match=rf"target\.{target.kind} is 1, which keeps everything: .* the strategy dense"):
        size_target(target)
