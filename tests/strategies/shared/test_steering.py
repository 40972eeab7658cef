"""A target instead of a guessed regularization: the penalty is steered until the cut that meets it is the threshold."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from steered_training import END, SHAPE, STEPS, WARMUP, landing, train
from tiny_families import tiny
from tiny_task import TinyTask, trainer
from torch import Tensor

from bplightning.contracts.schedule import cubic
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.shared.steering import meeting_cut
from bplightning.strategies.soft_movement import SoftMovement
from bplightning.testing.syncs import NoHostSync
from bplightning.training.module import PruningModule


def steered(*, units: int = 256, **options: Any) -> SoftMovement:
    strategy = SoftMovement(granularity={"attention": "8x8", "feed_forward": "unit"}, **options)
    strategy.attach(PrunableLayout.of(tiny("bert", **SHAPE, intermediate_size=units)))
    return strategy


@pytest.mark.parametrize(("target", "pull"), [(0.5, 1.0), (0.25, 0.1), (0.25, 100.0), (0.12, 1.0)])
def test_the_target_is_met_whatever_the_scale_of_the_loss(target: float, pull: float) -> None:
    strategy = steered(target=Target(density=target))
    seen = train(strategy, pull=pull)
    snap = landing(strategy)
    assert (snap["kind"], snap["target"]) == ("density", target)
    assert snap["before"] == pytest.approx(target, rel=0.02)  # by steering
    assert snap["after"] == pytest.approx(seen[-1]) == pytest.approx(target, rel=0.01)
    assert len(set(seen[END:])) == 1  # masks stand still in the last part
    assert [strategy.target_reached(Progress(step, STEPS, WARMUP)) for step in (END - 1, END)] == [False, True]
    assert not strategy.window.freeze_masks  # without being told to: the window is the one that was given
    assert seen[END // 2] > target
    assert abs(float(strategy.steering.violation)) < 0.05  # type: ignore[union-attr]  # by the penalty, not by the cut


def test_a_share_of_flops_is_met() -> None:
    strategy = steered(target=Target(flops=0.4), units=1024)  # by which a head is hundredths of all
    train(strategy, steps=END)
    snap = landing(strategy)
    assert (snap["kind"], snap["target"]) == ("flops", 0.4)
    assert snap["before"] == pytest.approx(0.4, rel=0.05)
    assert snap["after"] == pytest.approx(0.4, rel=0.03)


def test_masks_change_little_by_little_where_the_penalty_arrives_elsewhere() -> None:
    """A penalty that may not be steered leaves the cut far from the threshold: the way is made in many steps."""
    strategy = steered(target=Target(density=0.3), regularization=1e-6)  # the weight's range does not reach far enough
    seen = train(strategy, steps=END)
    assert abs(float(strategy.steering.violation)) > 0.2  # type: ignore[union-attr]
    assert seen[-1] == pytest.approx(0.3, rel=0.01)
    steps = [before - after for before, after in pairwise(seen)]
    assert max(steps) < 0.1 * sum(steps)
    assert landing(strategy)["before"] == pytest.approx(0.3, rel=0.02)


def test_the_masks_before_the_snap_can_be_had_again() -> None:
    strategy = steered(target=Target(density=0.3))
    assert strategy.snap() is None
    train(strategy, steps=END - 1)
    before = [mask.kept.clone() for mask in strategy.all_masks]
    with torch.no_grad():
        for mask in strategy.all_masks:  # so that there is something to snap
            mask.scores.add_(torch.randn(mask.scores.shape))
    strategy.advance(Progress(END, STEPS, WARMUP))
    after = [mask.kept.clone() for mask in strategy.all_masks]
    snap = landing(strategy)
    differences = [old ^ new for old, new in zip(before, after, strict=True)]
    assert snap["changed"] == sum(int(grid.sum()) for grid in differences) > 0
    weights = sum(mask.total_weights for mask in strategy.all_masks)
    for when, grids in (("before", before), ("after", after), ("before", before), ("after", after)):
        strategy.put_masks(before_snap=when == "before")
        assert all(torch.equal(mask.kept, grid) for mask, grid in zip(strategy.all_masks, grids, strict=True))
        kept = sum(
            int(grid.sum()) * mask.weights_per_entry for mask, grid in zip(strategy.all_masks, grids, strict=True)
        )
        assert snap[when] == pytest.approx(kept / weights, rel=1e-6)
    strategy.advance(Progress(END, STEPS, WARMUP))  # as when a run goes on from there
    resumed = steered(target=Target(density=0.3))
    resumed.load_state_dict(strategy.state_dict())
    assert landing(strategy) == landing(resumed) == snap


def test_without_a_target_the_weight_follows_the_schedule() -> None:
    strategy = steered(regularization=7.0)
    strategy.advance(Progress(END, STEPS, WARMUP))
    assert float(strategy.penalty_weight) == 7.0
    assert "target_cut" not in strategy.metrics()


@pytest.mark.parametrize("spread", [1.0, 1000.0])
def test_the_meeting_cut_leaves_the_share(spread: float) -> None:
    scores = spread * torch.randn(10_000, generator=torch.Generator().manual_seed(0))

    def fraction(cut: Tensor) -> Tensor:
        return (scores > cut).float().mean()

    cut = meeting_cut(left=fraction, share=0.3, span=scores.abs().amax())
    assert float(fraction(cut)) == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("steps", [12, 18, 120])
@pytest.mark.parametrize("model_type", ["bert", "bart"])
def test_what_is_left_falls_no_faster_than_the_cubic_way_to_the_target(model_type: str, steps: int) -> None:
    """Scores that fall by the whole way in a step, as in a run of few steps: without a bound nothing would be left."""
    strategy = SoftMovement(Target(density=0.4), granularity={"attention": "4x4", "feed_forward": "unit"})
    strategy.attach(PrunableLayout.of(tiny(model_type)))
    start, end = strategy.window.steps(Progress(0, steps, 1))
    generator = torch.Generator().manual_seed(0)
    for step in range(end + 1):
        strategy.advance(Progress(step, steps, 1))
        least = cubic(step=step, start=start, end=end, initial=1.0, final=0.4)
        assert float(strategy.density()["total"]) >= least - 0.01
        with torch.no_grad():
            for mask in strategy.all_masks:
                mask.scores.add_(torch.randn(mask.scores.shape, generator=generator) - 3)
    snap = landing(strategy)
    assert snap["after"] == pytest.approx(0.4, abs=0.01)


def test_scores_that_are_all_alike_are_not_all_cut() -> None:
    strategy = steered(target=Target(density=0.3))
    with torch.no_grad():
        for mask in strategy.all_masks:
            mask.scores.fill_(-5.0)
    for step in (WARMUP, (WARMUP + END) // 2, END):
        strategy.advance(Progress(step, STEPS, WARMUP))
        assert float(strategy.density()["total"]) == 1
    assert not strategy.target_reached(Progress(END, STEPS, WARMUP))  # which no best checkpoint may be taken for


def test_a_network_of_few_examples_is_not_wiped_on_its_way(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(float(pl_module.strategy.density()["total"]))

    task = TinyTask(tmp_path, hidden_size=32)
    module = PruningModule(task, Hybrid(Target(density=0.4), granularity={"attention": "8x8"}), learning_rate=3e-5)
    trainer(tmp_path, callbacks=[Watch()], max_epochs=1, logger=False, limit_val_batches=0).fit(module, datamodule=task)
    assert len(seen) == 12
    assert min(seen) == seen[-1] == pytest.approx(0.4, abs=0.02)


def test_a_step_that_is_seen_twice_counts_once() -> None:
    strategy = steered(target=Target(density=0.3))
    train(strategy, steps=200)
    before = copy.deepcopy(strategy.state_dict())
    strategy.advance(Progress(200, STEPS, WARMUP))  # as when a run is resumed
    assert all(torch.equal(value, before[name]) for name, value in strategy.state_dict().items())
    resumed = steered(target=Target(density=0.3))
    resumed.load_state_dict(before)
    for each in (strategy, resumed):
        each.advance(Progress(202, STEPS, WARMUP))
    assert float(resumed.penalty_weight) == float(strategy.penalty_weight) != float(before["penalty_weight"])


def test_a_step_with_a_target_never_waits_for_the_host() -> None:
    for target in (Target(density=0.3), Target(flops=0.5)):
        strategy = steered(target=target)
        with NoHostSync():
            for step in (0, WARMUP, WARMUP + 2, END - 2, END):
                strategy.advance(Progress(step, STEPS, WARMUP))
                strategy.penalty()
                strategy.metrics()


def test_the_cut_is_looked_for_so_often_as_it_turns() -> None:
    strategy = steered(target=Target(density=0.3))
    looks = []
    look = strategy.steering.look  # type: ignore[union-attr]
    strategy.steering.look = lambda: looks.append(step) or look()  # type: ignore[union-attr, func-returns-value]
    for step in range(END + 10):
        strategy.advance(Progress(step, STEPS, WARMUP))
    assert looks[:3] == [WARMUP, WARMUP + 2, WARMUP + 4]
    assert looks[-1] == END
    assert len(looks) <= (END - WARMUP) // 2 + 1


def test_a_target_without_a_penalty_is_refused() -> None:
    with pytest.raises(UserError, match="no penalty can be steered: give one above 0"):
        Hybrid(target=Target(density=0.5), regularization=0.0)
