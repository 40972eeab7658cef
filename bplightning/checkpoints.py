"""Which checkpoints a run keeps: the best one that is pruned, and the last one."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

LAST = "last.ckpt"


class PrunedCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint, and none that is not yet pruned as far as it is meant to be.

    Before it is pruned a model is better than ever after, so the best of all would be a dense one. It looks after each
    validation.

    Args:
        monitor: What is logged of a validation, for example ``val_f1``.
        mode: Whether the best is the greatest (``max``) or the least (``min``).
        dirpath: Folder to write; by default ``checkpoints/`` in the run's folder.
        filename: Name of the file, in which ``{step}`` and what is logged may stand; ``best``, which `--ckpt_path best`
            looks for, comes first.
        save_top_k: How many to keep, 1 or more.
        verbose: Whether to say so at each new best.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"] = "max",
        dirpath: str | None = None,
        filename: str = "best-{step}",
        save_top_k: int = 1,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            dirpath=dirpath,
            filename=filename,
            save_top_k=save_top_k,
            verbose=verbose,
            save_on_train_epoch_end=False,
        )

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a model is among the best: never before the strategy has reached its target."""
        module: Any = trainer.lightning_module
        return module.target_reached() and super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best so far, though it lies in the folder of the run that was interrupted."""
        there = {path: score for path, score in state_dict["best_k_models"].items() if Path(path).is_file()}
        if len(there) == len(state_dict["best_k_models"]):
            super().load_state_dict(state_dict | {"dirpath": self.dirpath, "last_model_path": ""})


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, which `--ckpt_path last` goes on from: after each validation and every so often.

    Args:
        every_minutes: Minutes between two, or less where validation comes first; more than 0.
    """

    def __init__(self, every_minutes: float = 15.0) -> None:
        self.every = timedelta(minutes=every_minutes).total_seconds()
        self._saved_at = -1
        self._saved_when = 0.0

    def save(self, trainer: Trainer) -> Path:
        """Write it, on all ranks together, and return its path."""
        path = _folder(trainer) / LAST
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_at, self._saved_when = trainer.global_step, time.monotonic()
        return path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_when = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        due = time.monotonic() - self._saved_when >= self.every
        if trainer.world_size > 1:  # clocks differ, and asking all ranks costs time
            if trainer.global_step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
                return
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved_at != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save(trainer)


def save_last(trainer: Trainer) -> Path | None:
    """Write ``last.ckpt`` now, where this run keeps checkpoints at all; returns its path, or `None`."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            return callback.save(trainer)
    return LastCheckpoint().save(trainer) if trainer.checkpoint_callbacks else None


def last_saved(trainer: Trainer) -> Path | None:
    """The newest checkpoint that this run has written, or that it went on from; `None` if there is none."""
    if not trainer.checkpoint_callbacks:
        return None
    found = sorted(_folder(trainer).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else Path(trainer.ckpt_path) if trainer.ckpt_path else None


def warn_of_unpruned_choices(trainer: Trainer) -> None:
    """Say once what a callback of the user's would do to a strategy that has not reached its target yet."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if isinstance(callback, EarlyStopping):
            rank_zero_warn(
                f"{name} may stop this run before it is pruned as far as it is meant to be: leave it out, or set "
                "trainer.min_steps to the step from which val_target_reached is 1."
            )
        elif isinstance(callback, ModelCheckpoint) and not isinstance(callback, PrunedCheckpoint) and callback.monitor:
            rank_zero_warn(
                f"{name}(monitor={callback.monitor!r}) may take a model as best that is not pruned yet: use "
                "bplightning.checkpoints.PrunedCheckpoint in its place."
            )


def _folder(trainer: Trainer) -> Path:
    """Where this run keeps its checkpoints."""
    folders = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    chosen = next((folder for folder in folders if folder), None)
    return Path(chosen or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")
