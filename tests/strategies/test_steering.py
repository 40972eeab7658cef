"""A target instead of a guessed regularization: the penalty is steered until the cut that meets it is the threshold."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_families import tiny
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from bplightning.errors import UserError
from bplightning.layout import PrunableLayout
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.soft_movement import SoftMovement, logit
from bplightning.strategies.steering import Steering
from bplightning.strategy import Progress

SHAPE = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 256, "num_hidden_layers": 2}
STEPS, WARMUP, END = 1000, 50, 500


def steered(**options: object) -> SoftMovement:
    strategy = SoftMovement(granularity={"attention": "8x8", "feed_forward": "unit"}, **options)  # type: ignore[arg-type]
    strategy.attach(PrunableLayout.of(tiny("bert", **SHAPE)))
    return strategy


def train(strategy: SoftMovement, *, steps: int = END + 50, pull: float = 1.0) -> list[float]:
    """Scores pulled up by what each entry is worth, with noise, and down by the penalty; density at each step."""
    generator = torch.Generator().manual_seed(0)
    worth = [
        pull * torch.randn(mask.scores.shape, generator=generator).exp() / mask.scores.numel()
        for mask in strategy.all_masks
    ]
    (group,) = strategy.parameter_groups(total_steps=STEPS)
    optimizer = torch.optim.AdamW([group])
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    seen = []
    strategy.advance(Progress(0, STEPS, WARMUP))
    for step in range(1, steps + 1):
        strategy.penalty().backward()  # type: ignore[union-attr]
        for mask, value in zip(strategy.all_masks, worth, strict=True):
            noise = 1 + 3 * torch.randn(value.shape, generator=generator)
            mask.scores.grad -= value * noise
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        strategy.advance(Progress(step, STEPS, WARMUP))
        seen.append(float(strategy.density()["total"]))
    return seen


@pytest.mark.parametrize(("target", "pull"), [(0.5, 1.0), (0.25, 0.1), (0.25, 100.0), (0.12, 1.0)])
def test_the_target_is_met_whatever_the_scale_of_the_loss(target: float, pull: float) -> None:
    strategy = steered(target_density=target)
    seen = train(strategy, pull=pull)
    before, after = float(strategy.density_before_snap), seen[-1]
    assert before == pytest.approx(target, rel=0.1)  # by steering
    assert after == pytest.approx(target, rel=0.02)
    assert len(set(seen[END:])) == 1  # masks stand still in the last part
    assert seen[END // 2] > target


def test_without_a_target_the_weight_follows_the_schedule() -> None:
    strategy = steered(regularization=7.0)
    strategy.advance(Progress(END, STEPS, WARMUP))
    assert float(strategy.penalty_weight) == 7.0
    assert "target_cut" not in strategy.metrics()


def test_the_meeting_cut_leaves_the_target() -> None:
    scores = torch.randn(10_000, generator=torch.Generator().manual_seed(0))

    def fraction(cut: Tensor) -> Tensor:
        return (scores > cut).float().mean()

    steering = Steering(0.3, fraction, final_cut=logit(0.1), weight=1.0)
    assert float(fraction(steering.meeting_cut())) == pytest.approx(0.3, abs=1e-4)


def test_a_step_that_is_seen_twice_counts_once() -> None:
    strategy = steered(target_density=0.3)
    train(strategy, steps=200)
    before = copy.deepcopy(strategy.state_dict())
    strategy.advance(Progress(200, STEPS, WARMUP))  # as when a run is resumed
    assert all(torch.equal(value, before[name]) for name, value in strategy.state_dict().items())
    resumed = steered(target_density=0.3)
    resumed.load_state_dict(before)
    for each in (strategy, resumed):
        each.advance(Progress(201, STEPS, WARMUP))
    assert float(resumed.penalty_weight) == float(strategy.penalty_weight) != float(before["penalty_weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_density": 0.0}, r"target_density is 0; .* must be in \(0, 1\)"),
        ({"target_density": 1.0}, r"target_density is 1; .* must be in \(0, 1\)"),
        ({"target_density": 0.5, "regularization": 0.0}, "no penalty can be steered: give one above 0"),
    ],
)
def test_impossible_targets_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Hybrid(**options)  # type: ignore[arg-type]
