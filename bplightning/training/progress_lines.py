"""Progress for a log file: whole lines in place of a bar."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from bplightning.training.progress_words import Pace


class ProgressLines(ProgressBar):
    """Prints a line such as `StageBar` draws at intervals, in place of a bar, when the output is not a terminal."""

    def __init__(self, every_seconds: float = 10.0, stage: str = "") -> None:
        """Print at most one line in `every_seconds`.

        Args:
            every_seconds: Seconds between lines; the lines after a validation and at the end come in between.
            stage: The stage that the trainer trains, such as ``stage 2/5 prune``.
        """
        super().__init__()
        self.every_seconds = every_seconds
        self.stage = stage
        self._pace = Pace()
        self._said = -1  # the step of the last validation's line
        self._enabled = True
        self._last = float("-inf")

    def enable(self) -> None:
        """Print from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing from now on."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts."""
        self._pace.start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Print a line if the last one is old enough."""
        if time.monotonic() - self._last >= self.every_seconds:
            self._line(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line with the validation metrics."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._line(trainer, pl_module)
            self._said = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a last line, unless that of a validation has said the same."""
        if trainer.global_step != self._said:
            self._line(trainer, pl_module)

    def _line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._last = time.monotonic()
        self.print("  ".join(self._pace.words(trainer, pl_module, self.stage)), flush=True)
