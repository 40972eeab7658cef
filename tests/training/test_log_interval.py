"""Curves have about as many points whatever a run's length, unless the user says how often to log."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tiny_task import TinyTask, trainer

from bplightning.cli.training import PruningCLI
from bplightning.reporting.page_curves import read_curves
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.log_interval import LogInterval, interval
from bplightning.training.module import PruningModule


def test_a_short_run_has_points_enough(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[LogInterval()])  # 24 steps
    module = PruningModule(TinyTask(tmp_path, hidden_size=16), Hybrid(granularity={"attention": "16x16"}))
    with warnings.catch_warnings(record=True) as said:
        run.fit(module, datamodule=module.task)
    assert not [each for each in said if "log_every_n_steps" in str(each.message)]
    curves = read_curves(Path(str(run.log_dir)) / "metrics.csv")
    assert len(curves["density/total"]) == len(curves["task_loss"]) == 24


@pytest.mark.parametrize(("steps", "points"), [(99, 99), (126, 63), (1000, 50), (2499, 51)])
def test_there_are_fifty_points_at_least(steps: int, points: int) -> None:
    assert steps // interval(steps) == points


@pytest.mark.parametrize(("typed", "adapts"), [([], True), (["--trainer.log_every_n_steps", "7"], False)])
def test_what_is_typed_wins(tmp_path: Path, typed: list[str], adapts: bool) -> None:
    words = ["fit", "--strategy", "dense", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)]
    made = PruningCLI([*words, *typed])
    for own in (made.trainer, made.stage_trainer(tmp_path / "baseline")):
        assert any(isinstance(callback, LogInterval) for callback in own.callbacks) == adapts
        assert adapts or own.log_every_n_steps == 7
