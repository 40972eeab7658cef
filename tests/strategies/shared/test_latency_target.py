"""A speed-up in time: what is left is what the table says, it is met by steering, and a run keeps its table."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_tables import made_table
from spread_scores import spread_scores
from steered_training import END, SHAPE, STEPS, WARMUP, landing, train
from tiny_families import tiny
from tiny_task import TinyTask, trainer

from bplightning import compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import latency_measuring
from bplightning.measuring.latency_table import LatencyTable
from bplightning.planning.plan import plan
from bplightning.stages import pipeline
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.shared import latency_target
from bplightning.strategies.shared.latency_target import LatencySpeedup, interpolated
from bplightning.strategies.soft_movement import SoftMovement
from bplightning.testing.syncs import NoHostSync
from bplightning.training.module import PruningModule


def model_of(units: int = 256) -> Any:
    return tiny("bert", **SHAPE, intermediate_size=units)


def attached(file: Path, speedup: float = 2.0, **table: Any) -> tuple[SoftMovement, LatencyTable, PrunableLayout]:
    """A strategy with a table made by hand, on a model."""
    layout = PrunableLayout.of(model_of())
    made = made_table(layout, **table)
    made.save(file)
    strategy = SoftMovement(
        target=Target(latency_speedup=speedup, latency_table=str(file)),
        granularity={"attention": "8x8", "feed_forward": "unit"},
    )
    strategy.attach(layout)
    return strategy, made, layout


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_left_is_what_the_table_says_of_the_compact_model(tmp_path: Path, seed: int) -> None:
    strategy, table, layout = attached(tmp_path / "table.json", bent=0.1)
    spread_scores(strategy, seed=seed)
    cut = torch.tensor(-0.4)
    foreseen = float(strategy.left()(cut))
    strategy.set_grids(strategy.grids_above(cut))
    reached = strategy.reached()
    strategy.harden(layout)
    small: Any = compact(layout.model)
    kept = CompactionPlan.of(layout.model)
    counts = [("attention", len(each)) for _, each, _ in kept.heads]
    counts += [("feed_forward", len(each)) for _, each, _ in kept.units]
    assert small.compaction_plan.heads == kept.heads
    assert len({count for _, count in counts}) > 2
    share = table.milliseconds(counts) / table.dense_ms
    assert foreseen == pytest.approx(share, rel=1e-5)
    assert reached == pytest.approx(1 / share, rel=1e-5)


def test_interpolation_is_numpys() -> None:
    xs, ys = [0.0, 0.5, 2.0, 2.1], [1.0, 1.5, 1.6, 9.0]
    for x in (-1.0, 0.0, 0.2, 0.5, 1.9, 2.05, 2.1, 3.0):
        assert float(interpolated(*map(torch.tensor, (x, xs, ys)))) == pytest.approx(np.interp(x, xs, ys), abs=1e-5)


def test_a_speed_up_by_the_table_is_met_by_steering(tmp_path: Path) -> None:
    strategy, _, _ = attached(tmp_path / "table.json", speedup=1.8, bent=0.1)
    train(strategy, steps=END)
    snap = landing(strategy)
    assert (snap["kind"], snap["target"], snap["shape"]) == ("latency_speedup", 1.8, "1x16")
    assert snap["before"] == pytest.approx(1.8, rel=0.05)
    assert snap["after"] == pytest.approx(1.8, rel=0.03)


def test_a_step_never_waits_for_the_host(tmp_path: Path) -> None:
    strategy, _, _ = attached(tmp_path / "table.json")
    with NoHostSync():
        for step in (0, WARMUP, WARMUP + 2, END - 2, END):
            strategy.advance(Progress(step, STEPS, WARMUP))
            strategy.penalty()
            strategy.metrics()


def test_a_run_goes_on_with_the_table_it_began_with(tmp_path: Path) -> None:
    strategy, table, layout = attached(tmp_path / "table.json")
    torch.save(strategy.state_dict(), tmp_path / "state.pt")
    slower, other, _ = attached(tmp_path / "table.json", bent=0.2)
    assert slower.size_target.table == other != table  # type: ignore[union-attr]
    slower.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert slower.size_target.table == table  # type: ignore[union-attr]
    half = torch.tensor(0.0)
    for each in (strategy, slower):
        spread_scores(each, seed=0)
    assert float(slower.left()(half)) == float(strategy.left()(half))
    with pytest.warns(UserWarning, match="is not the one this run began with, of 2026-11-27"):
        slower.prepare(lambda: layout.model)
    table.save(tmp_path / "table.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slower.prepare(lambda: layout.model)


def test_a_table_of_another_model_is_refused_before_training(tmp_path: Path) -> None:
    attached(tmp_path / "table.json")
    strategy = Hybrid(target=Target(latency_speedup=2.0, latency_table=str(tmp_path / "table.json")))
    with pytest.raises(UserError, match=r"is of another model: .*feed_forward"):
        strategy.attach(PrunableLayout.of(model_of(units=128)))


def test_a_speed_up_out_of_reach_is_refused_by_the_largest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"target\.latency_speedup is 50, which cannot be reached: .* it is 12\. Ask for less pruning"
    ):
        attached(tmp_path / "table.json", speedup=50.0)  # (2 * 8 + 2 * 3 + 2) / 2


def test_a_part_of_a_model_leaves_the_rest_dense(tmp_path: Path) -> None:
    _, table, layout = attached(tmp_path / "table.json")
    part = copy.copy(layout)
    object.__setattr__(part, "attention", layout.attention[:1])
    object.__setattr__(part, "feed_forward", ())
    target = LatencySpeedup(1.2, str(tmp_path / "table.json"))
    strategy = SoftMovement(granularity={"attention": "8x8"})
    object.__setattr__(part, "model", model_of())
    strategy.attach(part)
    target.attach(part, strategy.all_masks)
    nothing = target.left(strategy.all_masks, [mask.kept.float() for mask in strategy.all_masks])(torch.tensor(2.0))
    assert float(nothing) == pytest.approx((table.dense_ms - table.roles["attention"].ms[-1]) / table.dense_ms)


# -- without a file ----------------------------------------------------------------------------------------------------


def test_without_a_file_nothing_is_measured_where_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_measuring, "_beside", lambda *_: pytest.fail("it measures"))
    made = plan(model_of(), Hybrid(target=Target(latency_speedup=2.0), granularity={"attention": "8x8"}))
    assert made["problems"] == []
    assert made["estimates"] is not None
    assert made["estimates"]["density_from"] == "training"


def test_training_to_a_speed_up_of_which_no_time_is_known_is_refused() -> None:
    strategy = Hybrid(target=Target(latency_speedup=2.0), granularity={"attention": "8x8"})
    strategy.attach(PrunableLayout.of(model_of()))
    strategy.advance(Progress(0, 100, warmup_steps=2))
    with pytest.raises(UserError, match=r"target.latency_speedup is 2, .* call the strategy's `prepare`"):
        strategy.penalty()


def test_a_run_measures_its_table_and_reports_the_speed_up_at_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With times that follow from the copies' sizes, so that the target is certain to be met."""
    measured = []

    def beside(model: Any, others: Any, shape: tuple[int, int], seconds: float) -> tuple[float, list[float]]:
        measured.append(shape)
        full, *left = (sum(p.numel() for p in each.base_model.encoder.parameters()) for each in (model, *others))
        return 10.0, [0.1 + 0.9 * weights / full for weights in left]

    monkeypatch.setattr(latency_measuring, "_beside", beside)
    monkeypatch.setattr(latency_target, "SHAPE", (2, 16))  # none that a report measures anyway
    task = TinyTask(tmp_path, num_attention_heads=8, intermediate_size=256)  # no part of it is much of the whole
    strategy = Hybrid(
        target=Target(latency_speedup=1.5), window=PruningWindow(final_warmup=2), granularity={"attention": "8x8"}
    )
    module = PruningModule(task, strategy, learning_rate=1e-3)
    report = pipeline.fit(trainer(tmp_path), module)
    assert report is not None
    assert set(measured) == {(2, 16)}
    snap = report["snap"]
    assert snap is not None
    assert (snap["kind"], snap["target"], snap["shape"]) == ("latency_speedup", 1.5, "2x16")
    assert snap["after"] == pytest.approx(1.5, rel=0.05)
    assert report["speedup"] is not None
    assert snap["shape"] in report["speedup"]


@pytest.mark.parametrize("older", [False, True], ids=["", "of-an-earlier-version"])
def test_a_run_that_goes_on_from_a_checkpoint_does_not_measure_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    def module() -> PruningModule:
        strategy = Hybrid(
            target=Target(latency_speedup=1.5), window=PruningWindow(final_warmup=2), granularity={"attention": "16x16"}
        )
        return PruningModule(TinyTask(tmp_path), strategy, learning_rate=1e-3)

    monkeypatch.setattr(latency_measuring, "_beside", lambda _, others, *rest: (10.0, [0.5] * len(others)))
    first, options = (
        module(),
        {"enable_checkpointing": False, "logger": False, "limit_val_batches": 0, "max_epochs": -1},
    )
    run = trainer(tmp_path, max_steps=3, **options)
    run.fit(first, datamodule=first.task)
    run.save_checkpoint(tmp_path / "run.ckpt")
    if older:
        saved = torch.load(tmp_path / "run.ckpt", weights_only=False)
        state = saved["state_dict"]
        state["strategy.target._extra_state"] = state.pop("strategy.size_target._extra_state")
        torch.save(saved, tmp_path / "run.ckpt")
    monkeypatch.setattr(latency_measuring, "_beside", lambda *_: pytest.fail("it measures"))
    second = module()
    trainer(tmp_path, max_steps=5, **options).fit(second, datamodule=second.task, ckpt_path=tmp_path / "run.ckpt")
    assert second.strategy.size_target.table == first.strategy.size_target.table is not None  # type: ignore[union-attr]


def test_a_rank_takes_the_first_ranks_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, own, layout = attached(tmp_path / "table.json")
    theirs = made_table(layout, bent=0.2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(
        torch.distributed, "broadcast_object_list", lambda objects, src: objects.__setitem__(src, theirs.document())
    )
    strategy.prepare(lambda: layout.model)
    assert strategy.size_target.table == theirs != own  # type: ignore[union-attr]
