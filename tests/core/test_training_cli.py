"""`fit`, `validate` and `test` around checkpoints: what is kept by default, what `last` means, what is left behind."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from bplightning import pipeline
from bplightning.checkpoints import LastCheckpoint, PrunedCheckpoint
from bplightning.cli import main

USER_FILE = """
from pathlib import Path
from tiny_task import TinyTask


class Tiny(TinyTask):
    def __init__(self, spoil: bool = False):
        super().__init__(Path(), hidden_size=16, intermediate_size=32)
        self.spoil = spoil

    def loss(self, outputs, batch):
        return outputs.loss * float("nan") if self.spoil else outputs.loss

    test_dataloader = TinyTask.val_dataloader
"""
OPTIONS = [
    *("--task", "user_tiny.Tiny", "--strategy", "hybrid", "--strategy.granularity", "{attention: 4x4}"),
    *("--strategy.initial_warmup", "0", "--strategy.final_warmup", "1", "--model.learning_rate", "1e-3"),
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "6", "--trainer.val_check_interval", "3"),
    *("--trainer.num_sanity_val_steps", "0"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder but for a user's own task."""
    (tmp_path / "user_tiny.py").write_text(USER_FILE)
    monkeypatch.delitem(sys.modules, "user_tiny", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # What follows training is tested elsewhere, and takes longest.
    monkeypatch.setattr(pipeline, "finish", lambda trainer, *args, **kwargs: trainers.append(trainer))
    trainers.clear()
    return tmp_path


trainers: list[Any] = []


def fit(*more: str) -> Any:
    main(["fit", *OPTIONS, *more])
    return trainers[-1]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    line = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(line) == 1
    return line[0]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in str(path)}


# -- what is kept --------------------------------------------------------------------------------------------------


def test_the_best_pruned_and_the_last_are_kept(here: Path) -> None:
    trainer = fit()
    best, last = (callback for callback in trainer.callbacks if isinstance(callback, Checkpoint))
    assert isinstance(best, PrunedCheckpoint)
    assert (best.monitor, best.mode) == ("val_accuracy", "max")
    assert isinstance(last, LastCheckpoint)
    assert {path.name for path in Path("runs/tiny-hybrid/version_0/checkpoints").iterdir()} == {
        "best-step=6.ckpt",
        "last.ckpt",
    }


def test_what_the_user_configures_wins() -> None:
    trainer = fit("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine")
    assert [type(callback) for callback in trainer.checkpoint_callbacks] == [ModelCheckpoint]
    assert not fit("--trainer.enable_checkpointing", "false").checkpoint_callbacks
    ours = fit("--trainer.callbacks+=bplightning.checkpoints.LastCheckpoint", "--trainer.callbacks.every_minutes=3")
    assert [callback.every for callback in ours.checkpoint_callbacks] == [180]


# -- last and best -------------------------------------------------------------------------------------------------


def test_last_is_the_newest_of_all_runs(caplog: pytest.LogCaptureFixture) -> None:
    fit()
    caplog.set_level(logging.INFO)
    again = fit("--ckpt_path", "last", "--trainer.max_steps", "8")
    assert again.global_step == 8
    assert str(again.ckpt_path) == "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"
    assert "The newest checkpoint is runs/tiny-hybrid/version_0/checkpoints/last.ckpt." in caplog.text
    third = fit("--ckpt_path", "last", "--trainer.max_steps", "9")
    assert str(third.ckpt_path) == "runs/tiny-hybrid/version_1/checkpoints/last.ckpt"


def test_without_any_checkpoint_last_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *OPTIONS, "--ckpt_path", "last")
    assert "no checkpoint 'runs/tiny-hybrid/version_*/checkpoints/*.ckpt': leave --ckpt_path out" in message


def test_a_folder_of_the_users_own_keeps_lightnings_meaning(tmp_path: Path) -> None:
    own = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}/mine"]
    own += ["--trainer.callbacks.save_last=true", "--trainer.callbacks.save_top_k=0"]
    own += ["--trainer.callbacks.every_n_train_steps=2"]
    fit(*own)
    assert str(fit(*own, "--ckpt_path", "last", "--trainer.max_steps", "8").ckpt_path) == f"{tmp_path}/mine/last.ckpt"


# -- validate and test ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_leaves_nothing_behind(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit()
    before = files(here)
    for which in ("last", "best", "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"):
        capsys.readouterr()
        main([verb, *OPTIONS, "--ckpt_path", which])
        said = capsys.readouterr()
        assert f"{'val' if verb == 'validate' else 'test'}_accuracy" in said.out
        assert f"{float(trainer.callback_metrics['val_accuracy']):.1f}" in said.out
        assert "callbacks used to create the checkpoint" not in said.err
    assert files(here) == before


def test_a_models_folder_is_evaluated_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit()
    module = trainer.lightning_module
    module.harden().save_pretrained("saved")
    before = files(here)
    main(["validate", *OPTIONS, "--ckpt_path", "saved"])
    assert f"{float(trainer.callback_metrics['val_accuracy']):.1f}" in capsys.readouterr().out
    assert files(here) == before
    message = refused(capsys, "validate", *OPTIONS, "--ckpt_path", "runs/tiny-hybrid/version_0")
    assert "version_0' is a folder without a config.json: give the folder of a saved model" in message
    weights = Path("saved/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "--ckpt_path 'saved' cannot be loaded" in refused(capsys, "test", *OPTIONS, "--ckpt_path", "saved")


# -- errors --------------------------------------------------------------------------------------------------------


def test_what_goes_wrong_in_training_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *OPTIONS, "--task.spoil", "true")
    assert "the loss is NaN or infinite at optimizer step 1" in message


def test_a_checkpoint_of_another_strategy_is_refused_in_every_verb(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    file = "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"
    kept = torch.load(file, weights_only=True)["global_step"]
    other = [*OPTIONS[:2], "--strategy", "dense", *OPTIONS[10:]]
    for verb in ("fit", "validate", "test"):
        message = refused(capsys, verb, *other, "--ckpt_path", file)
        assert f"checkpoint '{file}' is of another model or strategy (the file also has strategy." in message
    assert torch.load(file, weights_only=True)["global_step"] == kept


def test_a_damaged_checkpoint_is_refused_before_a_baseline_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    file = Path("runs/tiny-hybrid/version_0/checkpoints/last.ckpt")
    file.write_bytes(file.read_bytes()[:-1000])
    message = refused(capsys, "fit", *OPTIONS, "--baseline", "train", "--ckpt_path", "last")
    assert f"checkpoint '{file}' cannot be read" in message
    assert len(trainers) == 1


def test_a_place_that_cannot_be_written_is_refused_before_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs").write_text("a file")
    assert "the run's folder 'runs/tiny-hybrid/version_0' cannot be written ('" in refused(capsys, "fit", *OPTIONS)
    assert not trainers
