"""Progress on a terminal: one line that says which stage runs, how far it is, how long it takes, and what it found."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.live import Live
from rich.text import Text

from bplightning.training.progress_words import Pace, fitted, steps_of

OFTEN = 0.5
"""Seconds between two drawings, at least: each waits for the device to know the loss."""


class StageBar(ProgressBar):
    """One line, such as ``stage 2/5 prune  step 120/1260  1:02 left  loss 0.41  density 0.52  accuracy 80.1``.

    Args:
        stage: The stage that the trainer trains, such as ``stage 2/5 prune``.
        evaluation: The stage in which the same trainer evaluates afterwards; by default the same.
        console: Where to draw; by default the terminal.
    """

    def __init__(self, stage: str, evaluation: str | None = None, console: Console | None = None) -> None:
        super().__init__()
        self.stage = stage
        self.evaluation = stage if evaluation is None else evaluation
        self._console = console or Console()
        self._live: Live | None = None
        self._enabled = True
        self._pace, self._drawn = Pace(), 0.0

    def enable(self) -> None:
        """Draw from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing from now on."""
        self._close()
        self._enabled = False

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts, at the step that a run continues from."""
        self._pace.start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Draw it, if the last drawing is old enough."""
        if self._due():
            self._draw(self._pace.words(trainer, pl_module, self.stage))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last line, which stays."""
        if self._enabled:
            self._draw(self._pace.words(trainer, pl_module, self.stage))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """How far a validation is."""
        batches = _batches(trainer.num_val_batches)
        if (self._due() or (self._enabled and str(batch_idx + 1) == batches)) and not trainer.sanity_checking:
            done = f"batch {batch_idx + 1}/{batches}"
            if trainer.state.fn == TrainerFn.FITTING:
                self._draw([self.stage, f"step {trainer.global_step}/{steps_of(trainer)}", f"validating, {done}"])
            else:
                model = getattr(pl_module, "metric_prefix", None) or ""
                self._draw([self.evaluation, *filter(None, [model.replace("_", " ")]), done])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation outside training ends the line; Lightning prints its table."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """How far a test is."""
        if self._due():
            self._draw([self.evaluation, f"batch {batch_idx + 1}/{_batches(trainer.num_test_batches)}"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the line; Lightning prints its table."""
        self._close()

    # -- the line ------------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        return self._enabled and time.monotonic() - self._drawn >= OFTEN

    def _draw(self, parts: Sequence[str]) -> None:
        if self._live is None:
            self._live, before = Live(console=self._console, auto_refresh=False), sys.stderr
            self._live.start()
            _hand_over(before, sys.stderr)
        self._live.update(Text(fitted(parts, self._console.width), no_wrap=True), refresh=True)
        self._drawn = time.monotonic()

    def _close(self) -> None:
        if self._live is not None:
            during = sys.stderr
            self._live.stop()
            _hand_over(during, sys.stderr)
            self._live = None


def _hand_over(before: TextIO, after: TextIO) -> None:
    """Have logs written above the line: rich stands in for `sys.stderr`, and log handlers know the one before."""
    for name in (None, "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(after)


def _batches(counts: Sequence[int | float]) -> str:
    """Batches of an evaluation, or ``?`` where there is no end of them."""
    return str(int(counts[0])) if counts and counts[0] != float("inf") else "?"
