"""Ctrl-C and SIGTERM end a run between two optimizer steps, with a checkpoint and a word on how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from bplightning.checkpoints import save_last

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """The end of a run that was asked to stop; its status is the shell's, 128 and the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class StopGracefully(Callback):
    """Ends a run at the first SIGINT or SIGTERM as soon as its state is whole, and at once at the second.

    Args:
        resume: What to type to go on; by default only the checkpoint is named.
    """

    def __init__(self, resume: str | None = None) -> None:
        self.resume = resume
        self._received: int | None = None

    # Lightning sets its own handlers just before the first of these hooks, and puts back what was there afterwards.

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(self._receive)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(self._receive)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen_outside_training(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen_outside_training(trainer)

    def _listen_outside_training(self, trainer: Trainer) -> None:
        """There is no state to save: end at once, where Lightning would not hear SIGTERM at all."""
        if trainer.state.fn == TrainerFn.FITTING:
            return

        def stop(signum: int, _: Any) -> None:
            trained = self.resume is not None and trainer.global_step > 0
            self._say(f"Stopped by {signal.Signals(signum).name}." + (f" To go on: {self.resume}" if trained else ""))
            raise Interrupted(signum)

        self._listen(stop)

    @staticmethod
    def _listen(handler: Callable[[int, Any], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, handler)

    @staticmethod
    def _say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    def _receive(self, signum: int, _: Any) -> None:
        if self._received is not None:
            raise Interrupted(signum)
        self._received = signum
        self._say("Stopping after this step, with a checkpoint; once more to stop at once.")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self._received is not None
        if trainer.world_size > 1:  # a signal may reach one rank only; Lightning, too, asks the ranks in each step
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> NoReturn:
        saved = save_last(trainer) if trainer.global_step and not trainer.fast_dev_run else None  # type: ignore[attr-defined]
        signum = self._received or signal.SIGTERM
        if trainer.is_global_zero:
            name = signal.Signals(signum).name
            self._say(f"Stopped by {name} after optimizer step {trainer.global_step}. {self._remedy(saved)}")
        raise Interrupted(signum)

    def _remedy(self, saved: Path | None) -> str:
        if saved is None:
            return "There is no checkpoint to go on from: start anew."
        return f"To go on: {self.resume}" if self.resume else f"To go on, give ckpt_path={str(saved)!r}."


def resume_command(program: Sequence[str], args: Sequence[str]) -> str:
    """The command that goes on with a run.

    Args:
        program: How the program was called.
        args: What followed.

    >>> resume_command(["python", "cli.py"], ["fit", "--ckpt_path", "old.ckpt", "--task", "qa"])
    'python cli.py fit --task qa --ckpt_path last'
    """
    kept = [
        item
        for before, item in zip(["", *args], args, strict=False)
        if "--ckpt_path" not in (before, item.partition("=")[0])
    ]
    return shlex.join([*program, *kept, "--ckpt_path", "last"])
