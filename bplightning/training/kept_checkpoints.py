"""The checkpoints that a run keeps: the best one that is fully pruned, and the last one."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from bplightning.errors import UserError
from bplightning.io.run_folder import RunFolder
from bplightning.training.checkpoint_files import WholeFiles, folder_of

LAST = "last.ckpt"


class PrunedCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint among those that have reached the pruning target.

    A model scores best before it is pruned, so the best of all would be a dense one. Checkpoints are compared after
    each validation.

    Args:
        monitor: The logged metric, for example ``val_f1``.
        mode: Whether the best is the highest (``max``) or the lowest (``min``).
        dirpath: Folder to write; by default ``checkpoints/`` in the run's folder.
        filename: Name of the file, which may contain ``{step}`` and logged metrics in braces.
        save_top_k: Number of checkpoints to keep, 1 or more.
        verbose: Whether to print a line at each new best.
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
        if save_top_k < 1:
            raise UserError(
                f"save_top_k is {save_top_k}; it must be 1 or more: leave PrunedCheckpoint out to keep none."
            )
        super().__init__(
            monitor=monitor,
            mode=mode,
            dirpath=dirpath,
            filename=filename,
            save_top_k=save_top_k,
            verbose=verbose,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As in Lightning, without its warning about a folder that is not empty: a resumed run uses its own folder."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty", UserWarning)
            super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a model is among the best; never before the strategy has reached its target."""
        return is_pruned(trainer) and super().check_monitor_top_k(trainer, current)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the best checkpoints so far, and link them into this run's folder."""
        state = checkpoint["callbacks"].pop(self.state_key, None)
        if state is None or trainer.state.fn != TrainerFn.FITTING:
            return
        moved = Path(str(trainer.ckpt_path)).parent  # where they are if the run was moved
        here = {path: str(Path(str(self.dirpath)) / Path(path).name) for path in state["best_k_models"]}
        there = {path: next(filter(Path.is_file, (moved / Path(path).name, Path(path))), None) for path in here}
        if missing := [path for path, file in there.items() if file is None]:
            rank_zero_warn(
                f"{missing[0]!r}, the best checkpoint so far, does not exist: only later ones will be compared."
            )
            return
        if trainer.is_global_zero:
            for path, file in there.items():
                assert file is not None
                _link(file, Path(here[path]))
        checkpoint["callbacks"][self.state_key] = state | {
            "dirpath": self.dirpath,
            "best_k_models": {here[path]: score for path, score in state["best_k_models"].items()},
            "best_model_path": here.get(state["best_model_path"], ""),
            "kth_best_model_path": here.get(state["kth_best_model_path"], ""),
            "last_model_path": "",
        }


def is_pruned(trainer: Trainer) -> bool:
    """Whether the strategy of a `PruningModule` or a `PruningCallback` has reached its target; true without one."""
    owners: list[Any] = [trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]
    return all(owner.target_reached() for owner in owners if hasattr(owner, "target_reached"))


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, which `--ckpt_path last` resumes from, after each validation and at intervals.

    Args:
        every_minutes: Most minutes between two checkpoints; more than 0.
    """

    def __init__(self, every_minutes: float = 15.0) -> None:
        self.every = timedelta(minutes=every_minutes).total_seconds()
        self._saved_at = -1
        self._saved_when = 0.0

    def save(self, trainer: Trainer) -> Path:
        """Write the checkpoint, on all ranks together, and return its path."""
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
        if trainer.world_size > 1:  # clocks differ, and asking all ranks takes time
            if trainer.global_step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
                return
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._link_or_save(trainer)

    def _link_or_save(self, trainer: Trainer) -> None:
        """Give the best checkpoint a second name if it was written just now: it holds the same, and is large."""
        best = [each for each in trainer.checkpoint_callbacks if isinstance(each, PrunedCheckpoint)]
        written = [each._last_checkpoint_saved for each in best if each._last_global_step_saved == trainer.global_step]
        # Other ways to write may write into a file that is there, which would change both.
        if not written or not isinstance(trainer.strategy.checkpoint_io, WholeFiles):
            self.save(trainer)
            return
        if trainer.is_global_zero:
            path = _folder(trainer) / LAST
            part = path.with_name(f".{LAST}.part")
            part.unlink(missing_ok=True)
            _link(Path(written[-1]), part)
            part.replace(path)
        trainer.strategy.barrier()
        self._saved_at, self._saved_when = trainer.global_step, time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved_at != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save(trainer)


def save_last(trainer: Trainer) -> Path | None:
    """Write ``last.ckpt`` now and return its path, or `None` if this run keeps no checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            return callback.save(trainer)
    return LastCheckpoint().save(trainer) if trainer.checkpoint_callbacks else None


def last_saved(trainer: Trainer) -> Path | None:
    """The newest checkpoint that this run has written or was resumed from; `None` if there is none."""
    if not trainer.checkpoint_callbacks:
        return None
    found = [*_folder(trainer).glob("*.ckpt"), *([Path(trainer.ckpt_path)] if trainer.ckpt_path else [])]
    return max(filter(Path.is_file, found), key=lambda path: path.stat().st_mtime_ns, default=None)


def _link(file: Path, place: Path) -> None:
    """Give a file a second name; removing one name leaves the other."""
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:  # another disk, or one without links
        shutil.copy2(file, place)  # with its time: it is not the newest


def _folder(trainer: Trainer) -> Path:
    """The folder of this run's checkpoints."""
    folders = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    chosen = next((folder for folder in folders if folder), None)
    return Path(chosen or RunFolder(folder_of(trainer)).checkpoints)
