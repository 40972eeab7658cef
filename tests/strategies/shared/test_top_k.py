"""Magnitude and movement: the density reached is the density asked for, and what they keep is what is worth most."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from bplightning.contracts.scheduled import ScheduledStrategy
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.movement import Movement
from bplightning.strategies.shared.top_k import TopK

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
HYBRID = {"attention": "16x16", "feed_forward": "unit"}


def attached(strategy: TopK, **shape: Any) -> TopK:
    strategy.attach(PrunableLayout.of(tiny("bert", **(SHAPE | shape))))
    return strategy


def at(strategy: TopK, step: int, *, total: int = 100, warmup: int = 10) -> dict[str, float]:
    strategy.advance(Progress(step, total, warmup))
    return {role: float(value) for role, value in strategy.density().items()}


def learn(strategy: TopK, *, ties: bool = False) -> None:
    """Scores as after some training; with ties, only five different ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mask in strategy.all_masks:
            scores = torch.randn(mask.scores.shape, generator=generator)
            mask.scores.copy_(scores.round() if ties else scores)


@pytest.mark.parametrize("ties", [False, True, None])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("granularity", [{}, HYBRID, {"attention": "head", "feed_forward": "8x8"}])
def test_the_density_reached_is_the_one_asked_for(granularity: dict, scope: Any, ties: Any) -> None:
    """To half an entry of each mask, or in all, whatever the ties; `None`: no score ever moved, all are equal."""
    for density in (1.0, 0.9, 0.5, 0.26, 0.15):
        strategy = attached(Movement(target=Target(density=density), granularity=granularity, scope=scope))
        if ties is not None:
            learn(strategy, ties=ties)
        reached = at(strategy, 100)
        sizes = [mask.weights_per_entry for mask in strategy.all_masks]
        total = sum(mask.total_weights for mask in strategy.all_masks)
        slack = max(sizes) if scope == "global" else sum(sizes)
        assert reached["total"] == pytest.approx(density, abs=0.5 * slack / total + 1e-6)
        if scope == "local":
            for mask in strategy.all_masks:
                assert int(mask.kept.sum()) == int(density * mask.kept.numel() + 0.5)


def test_a_density_near_zero_is_kept_by_the_global_scope() -> None:
    strategy = attached(Movement(target=Target(density=0.001), scope="global"))
    learn(strategy)
    assert at(strategy, 100)["total"] == pytest.approx(0.001, rel=0.01)


def test_a_density_that_would_keep_nothing_is_refused() -> None:
    heads = {"attention": "head", "feed_forward": "unit"}
    rule = "is less than half an entry of 4096 that is kept or dropped as one: give a greater density, a finer gran"
    with pytest.raises(UserError, match=rf"density 0\.1 of encoder-0-self's 16384 weights {rule}.*, or scope global"):
        attached(Movement(target=Target(density=0.1), granularity=heads))
    with pytest.raises(UserError, match=rf"density 0\.01 of the model's 45056 weights {rule}ularity\.$"):
        attached(Movement(target=Target(density=0.01), granularity=heads, scope="global"))


def test_a_global_density_just_above_that_keeps_something_whatever_is_worth_most() -> None:
    strategy = attached(
        Movement(target=Target(density=0.05), granularity={"attention": "head", "feed_forward": "unit"}, scope="global")
    )
    for worth_most in (0, -1):
        with torch.no_grad():
            for mask in strategy.all_masks:
                mask.scores.zero_()
            strategy.all_masks[worth_most].scores.fill_(1.0)
        assert at(strategy, 100)["total"] == pytest.approx(0.05, abs=0.5 * 4096 / 45056)
        assert at(strategy, 100)["total"] > 0


@pytest.mark.parametrize("kind", [Magnitude, Movement])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Target(flops=0.5)}, r"target\.flops is 0\.5, which \w+ cannot prune to: it takes target\.den"),
        ({"target": 0.25}, r"target is 0\.25; it must be a Target, such as Target\(density=0\.25\)"),
        ({"scope": "layer"}, r"scope is 'layer'; it must be 'local'"),
        ({"refresh_every": 0}, r"refresh_every is 0; it must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[TopK], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**options)  # type: ignore[call-arg]


def test_global_scope_ranks_all_masks_together() -> None:
    strategy = attached(
        Movement(target=Target(density=0.5), scope="global", granularity=dict.fromkeys(HYBRID, "16x16"))
    )
    with torch.no_grad():
        for index, mask in enumerate(strategy.all_masks):
            mask.scores.fill_(float(-index))
    at(strategy, 100)
    shares = [float(mask.kept.float().mean()) for mask in strategy.all_masks]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == 0
    local = attached(Movement(target=Target(density=0.5), granularity=dict.fromkeys(HYBRID, "16x16")))
    at(local, 100)
    assert {float(mask.kept.float().mean()) for mask in local.all_masks} == {0.5}


def test_magnitude_keeps_the_largest_tiles() -> None:
    strategy = attached(Magnitude(target=Target(density=0.25), granularity=HYBRID))
    at(strategy, 100)
    group = strategy.layout.attention[0]
    weight = group.query.weight(strategy.layout.model).abs()
    means = weight.reshape(4, 16, 4, 16).mean((1, 3))
    kept = strategy.masks["encoder-0-self-query"].kept
    assert means[kept].min() > means[~kept].max()
    assert int(kept.sum()) == 4


def test_magnitude_learns_nothing_and_ties_the_projections_of_a_unit() -> None:
    strategy = attached(Magnitude(granularity=HYBRID))
    assert not list(strategy.parameters())
    group = strategy.layout.feed_forward[0]
    model = strategy.layout.model
    at(strategy, 100)
    up, down = group.up[0].weight(model).abs(), group.down.weight(model).abs()
    worth = (up.sum(1) + down.sum(0)) / 128
    kept = strategy.masks["encoder-0-feed_forward"].kept.flatten()
    assert worth[kept].min() > worth[~kept].max()


def test_n_of_m_neighbours_stay_whatever_the_density() -> None:
    strategy = attached(Movement(target=Target(density=0.1), granularity={"attention": "2:4", "feed_forward": "unit"}))
    learn(strategy, ties=True)
    density = at(strategy, 100)
    assert density["attention"] == 0.5
    assert density["feed_forward"] == pytest.approx(0.1, abs=0.5 / 48)
    kept = strategy.masks["encoder-1-self-value"].kept
    assert set(kept.view(-1, 4).sum(1).tolist()) == {2}
    at(strategy, 30)  # on the way there
    assert set(kept.view(-1, 4).sum(1).tolist()) == {3}


@pytest.mark.parametrize("cls", [Magnitude, Movement])
def test_a_target_that_no_mask_would_follow_is_refused(cls: type[TopK]) -> None:
    patterns = {"attention": "2:4", "feed_forward": "1:4"}
    with pytest.raises(UserError, match=r"target\.density is 0\.25 and granularity is 2:4 and 1:4 .* leave the target"):
        attached(cls(target=Target(density=0.25), granularity=patterns))
    assert at(attached(cls(granularity=patterns)), 100)["attention"] == 0.5


def test_density_falls_on_the_cubic_schedule_from_late_start_to_early_end() -> None:
    strategy = attached(Movement(target=Target(density=0.2), window=PruningWindow(initial_warmup=3, final_warmup=4)))
    learn(strategy)
    seen = [at(strategy, step)["total"] for step in (0, 30, 45, 60, 100)]
    assert seen == pytest.approx([1, 1, 0.2 + 0.8 / 8, 0.2, 0.2], abs=1e-3)


def test_nothing_need_follow_the_schedule() -> None:
    strategy = attached(Movement(target=Target(density=0.2), window=PruningWindow(initial_warmup=0, final_warmup=0)))
    learn(strategy)
    progress = [Progress(step, 100, 10) for step in (0, 99, 100)]
    assert [strategy.target_reached(each) for each in progress] == [False, False, True]
    assert at(strategy, 80)["total"] > 0.203
    assert at(strategy, 100)["total"] == pytest.approx(0.2, abs=1e-3)


def grids(strategy: TopK) -> list[Tensor]:
    return [mask.kept.clone() for mask in strategy.all_masks]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(itertools.starmap(torch.equal, zip(first, second, strict=True)))


@pytest.mark.parametrize("freeze", [False, True])
def test_masks_stand_still_in_the_last_part_only_when_asked(freeze: bool) -> None:
    strategy = attached(Movement(target=Target(density=0.2), window=PruningWindow(final_warmup=4, freeze_masks=freeze)))
    learn(strategy)
    at(strategy, 60)
    settled = grids(strategy)
    with torch.no_grad():
        for mask in strategy.all_masks:
            mask.scores.neg_()
    at(strategy, 61)
    assert same(grids(strategy), settled) is freeze
    assert at(strategy, 100)["total"] == pytest.approx(0.2, abs=1e-3)


def test_masks_are_chosen_anew_only_so_often_and_at_the_end_of_the_schedule() -> None:
    strategy = attached(Movement(target=Target(density=0.2), refresh_every=25))  # the schedule ends at step 80
    learn(strategy)
    chosen = []
    before = grids(strategy)
    for step in range(106):
        with torch.no_grad():
            for mask in strategy.all_masks:
                mask.scores.neg_()
        at(strategy, step)
        if not same(grids(strategy), before):
            chosen.append(step)
        before = grids(strategy)
    assert chosen == [30, 55, 80, 105]  # at 5 all is kept still
    assert float(strategy.density()["total"]) == pytest.approx(0.2, abs=1e-3)


def test_a_strategy_on_a_schedule_must_say_what_it_keeps() -> None:
    class Forgetful(ScheduledStrategy):
        pass

    with pytest.raises(TypeError, match="prune"):
        Forgetful(None, 1.0, 1.0, False)
