"""Ending a run at Ctrl-C or SIGTERM between two optimizer steps, with a checkpoint and the command to resume it."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from bplightning.io.ending import SIGNALS, Interrupted, let_finish, say
from bplightning.io.private import shown_command
from bplightning.training.kept_checkpoints import last_saved, save_last


class StopGracefully(Callback):
    """Ends a run at the first SIGINT or SIGTERM between two steps, and immediately at the second.

    Args:
        resume: The command that resumes the run when `--ckpt_path` and a checkpoint are appended; by default only the
            checkpoint is named.
        whole: Whether the command resumes the run as it is, with nothing appended.
    """

    def __init__(self, resume: str | None = None, *, whole: bool = False) -> None:
        self.resume = resume
        self.whole = whole
        self._received: int | None = None

    # Lightning sets its own handlers just before the first of these hooks, and restores the previous ones afterwards.

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(self._receive, waits=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(self._receive, waits=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        let_finish(False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        let_finish(False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)  # a signal may have come since the last batch
        self._listen_outside_training(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._listen_outside_training(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen_outside_training(trainer)

    def _listen_outside_training(self, trainer: Trainer) -> None:
        """Outside of training there is no state to save: end immediately; Lightning would ignore SIGTERM."""
        # Found now, because no rank may wait for the others in the handler.
        saved = last_saved(trainer) if trainer.global_step and not trainer.fast_dev_run else None  # type: ignore[attr-defined]

        def stop(signum: int, _: Any) -> None:
            remedy = f" {self._remedy(saved)}" if saved is not None or self.whole else ""
            say(f"Stopped by {signal.Signals(signum).name}.{remedy}")
            raise Interrupted(signum)

        self._listen(stop, waits=False)

    @staticmethod
    def _listen(handler: Callable[[int, Any], None], *, waits: bool) -> None:
        let_finish(waits)
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, handler)

    def _receive(self, signum: int, _: Any) -> None:
        if self._received is not None:
            raise Interrupted(signum)
        self._received = signum
        say("Stopping after this step, with a checkpoint. Interrupt again to stop immediately.")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self._received is not None
        if trainer.world_size > 1:  # a signal may reach only one rank; Lightning also asks all ranks in each step
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> NoReturn:
        saved = save_last(trainer) if trainer.global_step and not trainer.fast_dev_run else None  # type: ignore[attr-defined]
        signum = self._received or signal.SIGTERM
        if trainer.is_global_zero:
            name = signal.Signals(signum).name
            say(f"Stopped by {name} after optimizer step {trainer.global_step}. {self._remedy(saved)}")
        raise Interrupted(signum)

    def _remedy(self, saved: Path | None) -> str:
        if self.whole:
            return f"To resume: {self.resume}"
        if saved is None:
            return "There is no checkpoint to resume from: start again."
        if self.resume is None:
            return f"To resume, give ckpt_path={str(saved)!r}."
        return f"To resume: {self.resume} --ckpt_path {shlex.quote(_as_typed(saved))}"


def _as_typed(path: Path) -> str:
    """A path as a user would type it: relative to the current folder if it is inside it, else absolute."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def resume_command(words: Sequence[str]) -> str:
    """The command that started a run, without a checkpoint, since the one to resume from is not yet known.

    Args:
        words: The command as typed.

    >>> resume_command(["python", "cli.py", "fit", "--ckpt_path", "old.ckpt", "--task", "qa"])
    'python cli.py fit --task qa'
    """
    return shown_command(
        [
            item
            for before, item in zip(["", *words], words, strict=False)
            if "--ckpt_path" not in (before, item.partition("=")[0])
        ]
    )
