"""What is said and done when a run is asked to stop; tests/test_resume.py does it to real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_task import TinyTask

from bplightning.checkpoints import LastCheckpoint
from bplightning.interrupts import Interrupted, StopGracefully, resume_command
from bplightning.module import PruningModule
from bplightning.strategies.hybrid import Hybrid


class Send(Callback):
    """Sends this process signals at a hook's third call."""

    def __init__(self, hook: str, *signals: int) -> None:
        self.signals = list(signals)
        self.calls = 0
        setattr(self, hook, self._call)

    def _call(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == 3:
            for signum in self.signals:
                os.kill(os.getpid(), signum)


def train(folder: Path, *callbacks: Callback, **options: Any) -> None:
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    module = PruningModule(task, Hybrid(final_warmup=2, granularity={"attention": "4x4"}), learning_rate=1e-3)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    Trainer(callbacks=list(callbacks), **(settings | options)).fit(module, datamodule=task)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step_it_came_in(
    tmp_path: Path, signum: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    # In the middle of the third step, between its backward and the optimizer.
    with pytest.raises(Interrupted) as stop:
        train(tmp_path, Send("on_before_optimizer_step", signum), LastCheckpoint(), StopGracefully("type this"))
    assert stop.value.code == status
    said = capsys.readouterr().err
    assert f"Stopped by {signum.name} after optimizer step 3. To go on: type this\n" in said
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_validation_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    send = Send("on_validation_batch_start", signal.SIGINT)
    with pytest.raises(Interrupted):
        train(tmp_path, send, LastCheckpoint(), StopGracefully(), val_check_interval=2, limit_val_batches=2)
    assert send.calls == 3  # the first batch of the second validation
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert f"after optimizer step 4. To go on, give ckpt_path={str(path)!r}." in capsys.readouterr().err
    assert torch.load(path, weights_only=True)["global_step"] == 4


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
    assert "There is no checkpoint to go on from: start anew." in capsys.readouterr().err


def test_the_command_to_go_on_is_the_command_with_last() -> None:
    command = "python cli.py fit --strategy hybrid --task.train_file 'my data.json' --ckpt_path last"
    arguments = ["fit", "--strategy", "hybrid", "--task.train_file", "my data.json"]
    for given in ([], ["--ckpt_path", "old.ckpt"], ["--ckpt_path=old.ckpt"]):
        assert resume_command(["python", "cli.py"], [*arguments, *given]) == command
