"""Runs of earlier versions are recognised by their settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bplightning.cli.training import training_parser
from bplightning.errors import UserError
from bplightning.runs.matching_runs import find_earlier, find_same

OLD = yaml.safe_load(Path(__file__).with_name("config_before_0_1_0.yaml").read_text())
"""As `fit --strategy cofi` wrote it before version 0.1.0."""


def typed(*more: str) -> dict[str, Any]:
    """The settings of the same command in this version."""
    parser = training_parser("fit")
    words = [
        *("--task", "qa", "--strategy", "cofi", "--strategy.target.density", "0.25", "--baseline", "train"),
        *("--strategy.window.initial_warmup", "1", "--strategy.window.final_warmup", "2", "--start", "baseline"),
        *("--model.learning_rate", "5e-4", "--model.warmup", "1", "--trainer.accelerator", "cpu"),
        *("--task.batch_size", "32", "--task.eval_batch_size", "64", "--task.max_length", "192", "--task.stride", "64"),
        *("--trainer.max_epochs", "1", "--trainer.max_steps", "12", "--trainer.limit_val_batches", "1"),
    ]
    return dict(yaml.safe_load(parser.dump(parser.parse_args([*words, *more]), skip_unset=False)))


def saved(folder: Path, config: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_of_an_earlier_version_is_the_same(tmp_path: Path) -> None:
    run = saved(tmp_path / "version_0", OLD)
    assert find_same([run], typed()) == run
    assert find_same([run], typed("--strategy.target.density", "0.3")) is None
    assert find_earlier([run], "last", typed(), training=True) == run / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"differ: strategy.target.density is 0.25 there and 0.3 here. Give"):
        find_earlier([run], "last", typed("--strategy.target.density", "0.3"), training=True)


@pytest.mark.parametrize(
    "strategy", [{"class_path": "nobody.Has"}, {"class_path": 3}, {"init_args": {"density": 1}}, 7, None, ["hybrid"]]
)
def test_one_that_cannot_be_read_so_is_passed_over(tmp_path: Path, strategy: Any) -> None:
    run = saved(tmp_path / "version_0", OLD)
    newer = saved(tmp_path / "version_1", OLD | {"strategy": strategy})
    os.utime(newer / "config.yaml", (2**32, 2**32))
    assert find_same([run, newer], typed()) == run
