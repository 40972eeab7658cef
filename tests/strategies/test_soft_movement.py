"""Soft movement and hybrid: what makes them themselves."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny

from bplightning.contracts.schedule import cubic
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.soft_movement import SoftMovement
from bplightning.testing.syncs import NoHostSync

SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 1}


def attached(strategy: PruningStrategy) -> PruningStrategy:
    strategy.attach(PrunableLayout.of(tiny("bert", **SHAPE)))
    return strategy


def test_hybrid_masks_attention_in_blocks_and_feed_forward_by_unit() -> None:
    masks = attached(Hybrid()).masks
    assert {name: tuple(mask.kept.shape) for name, mask in masks.items()} == {
        "encoder-0-self-query": (2, 2),
        "encoder-0-self-key": (2, 2),
        "encoder-0-self-value": (2, 2),
        "encoder-0-self-output": (2, 2),
        "encoder-0-feed_forward": (48, 1),
    }
    assert [cover.transposed for cover in masks["encoder-0-feed_forward"].covers] == [False, True]


def test_soft_movement_masks_single_elements() -> None:
    masks = attached(SoftMovement()).masks
    assert masks["encoder-0-feed_forward-up"].kept.shape == (48, 64)


def test_penalty_is_the_mean_over_masks_then_roles() -> None:
    strategy = attached(
        Hybrid(
            window=PruningWindow(final_warmup=1),
            regularization=10.0,
            role_weights={"attention": 3.0, "feed_forward": 0.5},
        )
    )
    with torch.no_grad():
        for index, mask in enumerate(strategy.masks.values()):
            mask.scores.fill_(float(index))
    strategy.advance(Progress(1000, 1000, warmup_steps=50))  # the end: lambda(t) = lambda
    sigmoid = [1 / (1 + 2.718281828459045**-x) for x in range(5)]
    expected = 10.0 * (3.0 * sum(sigmoid[:4]) / 4 + 0.5 * sigmoid[4]) / 2
    assert float(strategy.penalty().detach()) == pytest.approx(expected, rel=1e-5)


def test_threshold_and_penalty_weight_rise_together() -> None:
    strategy = attached(Hybrid(window=PruningWindow(initial_warmup=1, final_warmup=2), regularization=10.0))
    seen = []
    for step in (0, 100, 450, 800, 1000):
        strategy.advance(Progress(step, 1000, warmup_steps=100))
        seen += [float(strategy.score_threshold), float(strategy.penalty_weight)]
    assert seen == pytest.approx([0, 0, 0, 0, 0.0875, 8.75, 0.1, 10, 0.1, 10])


def test_density_counts_weights_by_role() -> None:
    strategy = attached(Hybrid())
    with torch.no_grad():
        strategy.masks["encoder-0-self-query"].scores[0, 0] = -9  # one of 16 blocks of 32 x 32
        strategy.masks["encoder-0-feed_forward"].scores[:12] = -9  # 12 of 48 units of 2 x 64 weights
    strategy.prune(1.0, steps_after=0)
    density = {role: float(value) for role, value in strategy.density().items()}
    total = (15 * 1024 + 36 * 128) / (16 * 1024 + 48 * 128)
    assert density == pytest.approx({"attention": 15 / 16, "feed_forward": 36 / 48, "total": total})


def test_scores_cut_at_the_threshold() -> None:
    strategy = attached(Hybrid(final_score_threshold=0.3))
    (mask, *_) = strategy.masks.values()
    with torch.no_grad():
        mask.scores.copy_(torch.tensor([[-2.3, -2.1], [0.0, 5.0]]))  # logit(0.1) is -2.197
    strategy.prune(1 / 3, steps_after=0)
    assert mask.kept.tolist() == [[False, True], [True, True]]
    strategy.prune(1.0, steps_after=0)
    assert mask.kept.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("kind", [Hybrid, SoftMovement])
def test_a_target_is_the_default_unless_a_penalty_is_given(kind: type[SoftMovement]) -> None:
    assert kind().target == Target(density=0.25)
    assert kind(Target(flops=0.5), regularization=5.0).target == Target(flops=0.5)
    fixed = kind(regularization=5.0)
    assert (fixed.size_target, fixed.target.kind, fixed.regularization) == (None, None, 5)


def test_a_fixed_penalty_counts_in_proportion_to_a_short_run() -> None:
    seen = {}
    for steps, options in ((50, {}), (125, {}), (500, {}), (110_640, {}), (125, {"score_learning_rate": 0.01})):
        strategy = attached(Hybrid(regularization=20.0, **options))
        strategy.advance(Progress(steps, steps, warmup_steps=0))
        seen[steps, bool(options)] = float(strategy.penalty_weight)
    assert seen == pytest.approx(
        {(50, False): 2, (125, False): 5, (500, False): 20, (110_640, False): 20, (125, True): 20}
    )


@pytest.mark.parametrize(("steps", "left"), [(18, 0.05), (126, 0.05), (500, 0.0), (110_640, 0.0)])
def test_a_fixed_penalty_cannot_wipe_a_network_in_a_short_run(steps: int, left: float) -> None:
    strategy = attached(Hybrid(regularization=20.0))
    warmup = round(0.05 * steps)
    start, end = strategy.window.steps(Progress(0, steps, warmup))
    with torch.no_grad():
        for index, mask in enumerate(strategy.all_masks):  # as if all had fallen at once
            mask.scores.copy_(torch.linspace(-30, -20, mask.scores.numel()).view_as(mask.scores) - index / 100)
    for step in (start + (end - start) // 2, end, steps):
        strategy.advance(Progress(step, steps, warmup))
        if left:
            least = cubic(step=step, start=start, end=end, initial=1.0, final=left)
            assert float(strategy.density()["total"]) == pytest.approx(least, abs=0.05)
    assert float(strategy.density()["total"]) == pytest.approx(left, abs=0.02)
    with NoHostSync():
        strategy.advance(Progress(end, steps, warmup))


@pytest.mark.parametrize(("steps", "expected"), [(110_640, 1e-2), (300, 30 * 2.1972245773 / 300)])
def test_score_learning_rate_suits_the_length_of_the_run(steps: int, expected: float) -> None:
    (group,) = attached(Hybrid()).parameter_groups(total_steps=steps)
    assert group["lr"] == pytest.approx(expected)
    (group,) = attached(Hybrid(score_learning_rate=0.5)).parameter_groups(total_steps=steps)
    assert group["lr"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_score_threshold": 0.5}, r"final_score_threshold is 0\.5; .* must be in \(0, 0\.5\)"),
        ({"initial_score_threshold": -0.1}, r"initial_score_threshold is -0\.1; .* must be in \[0, 0\.5\)"),
        ({"regularization": -1.0}, r"regularization is -1; it must be 0 or more"),
        ({"regularization": float("nan")}, r"regularization is nan; it must be 0 or more"),
        ({"score_learning_rate": -0.01}, r"score_learning_rate is -0\.01; it must be above 0"),
        ({"role_weights": {"attention": -1.0}}, r"attention; it must be 0 \(no penalty\) or more"),
        ({"granularity": {"attention": "32"}}, r"granularity '32' is not known; it is one of: element, row, column"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Hybrid(**options)
