"""What is said and done when a run is asked to stop; tests/whole_program/test_resume.py does it to real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_task import TinyTask

from bplightning.contracts.window import PruningWindow
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.interrupts import Interrupted, StopGracefully, resume_command
from bplightning.training.kept_checkpoints import LastCheckpoint
from bplightning.training.module import PruningModule


class Send(Callback):
    """Sends this process signals at a hook's third call, or another one."""

    def __init__(self, hook: str, *signals: int, call: int = 3) -> None:
        self.signals = list(signals)
        self.call = call
        self.calls = 0
        setattr(self, hook, self._call)

    def _call(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.call:
            for signum in self.signals:
                os.kill(os.getpid(), signum)


def train(folder: Path, *callbacks: Callback, **options: Any) -> tuple[Trainer, PruningModule, TinyTask]:
    """Train for two epochs of 12 batches."""
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    module = PruningModule(
        task, Hybrid(window=PruningWindow(final_warmup=2), granularity={"attention": "4x4"}), learning_rate=1e-3
    )
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    run = Trainer(callbacks=list(callbacks), **(settings | options))
    run.fit(module, datamodule=task)
    return run, module, task


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step_it_came_in(
    tmp_path: Path,
    signum: signal.Signals,
    status: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    # In the middle of the third step, between its backward and the optimizer.
    with pytest.raises(Interrupted) as stop:
        train(tmp_path, Send("on_before_optimizer_step", signum), LastCheckpoint(), StopGracefully("type this"))
    assert stop.value.code == status
    said = capsys.readouterr().err
    assert (
        f"Stopped by {signum.name} after optimizer step 3. To resume: type this --ckpt_path checkpoints/last.ckpt\n"
        in said
    )
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_validation_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    send = Send("on_validation_batch_start", signal.SIGINT)
    with pytest.raises(Interrupted):
        train(tmp_path, send, LastCheckpoint(), StopGracefully(), val_check_interval=2, limit_val_batches=2)
    assert send.calls == 3  # the first batch of the second validation
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert f"after optimizer step 4. To resume, give ckpt_path={str(path)!r}." in capsys.readouterr().err
    assert torch.load(path, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_end"])
def test_a_signal_after_the_last_batch_ends_the_run_too(
    tmp_path: Path, hook: str, capsys: pytest.CaptureFixture[str]
) -> None:
    send = Send(hook, signal.SIGINT, call=1)
    with pytest.raises(Interrupted) as stop:
        train(tmp_path, send, LastCheckpoint(), StopGracefully("go on"), max_epochs=1)
    assert stop.value.code == 130
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert f"after optimizer step 12. To resume: go on --ckpt_path {path}\n" in capsys.readouterr().err
    assert torch.load(path, weights_only=True)["global_step"] == 12


def test_a_signal_while_the_last_checkpoint_is_written_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Saving(LastCheckpoint):
        def on_train_end(self, trainer: Trainer, module: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().on_train_end(trainer, module)

    with pytest.raises(Interrupted) as stop:
        train(tmp_path, Saving(), StopGracefully("go on"), max_steps=7, val_check_interval=5)
    assert stop.value.code == 143
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert capsys.readouterr().err.endswith(f"Stopped by SIGTERM. To resume: go on --ckpt_path {path}\n")
    assert torch.load(path, weights_only=True)["global_step"] == 5


def test_an_evaluation_after_training_ends_at_once_and_names_what_training_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    run, module, task = train(folder, LastCheckpoint(), StopGracefully("go on"), max_steps=2)
    run.callbacks.append(Send("on_validation_batch_start", signal.SIGTERM, call=1))  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        run.validate(module, datamodule=task, verbose=False)
    said = capsys.readouterr().err
    assert said.endswith("Stopped by SIGTERM. To resume: go on --ckpt_path 'my runs/checkpoints/last.ckpt'\n")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stop:
        train(
            tmp_path,
            Send("on_before_optimizer_step", signal.SIGINT, signal.SIGINT),
            LastCheckpoint(),
            StopGracefully(),
        )
    assert stop.value.code == 130
    assert not list(tmp_path.rglob("*.ckpt"))


def test_without_checkpoints_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, Send("on_train_batch_start", signal.SIGINT), StopGracefully("x"), enable_checkpointing=False)
    assert "There is no checkpoint to resume from: start again." in capsys.readouterr().err


def test_the_command_to_go_on_is_the_command_without_its_checkpoint() -> None:
    command = "python cli.py fit --strategy hybrid --task.train_file 'my data.json'"
    arguments = ["fit", "--strategy", "hybrid", "--task.train_file", "my data.json"]
    for given in ([], ["--ckpt_path", "old.ckpt"], ["--ckpt_path=old.ckpt"]):
        assert resume_command(["python", "cli.py", *arguments, *given]) == command
