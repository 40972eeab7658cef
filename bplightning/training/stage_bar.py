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

OFTEN = 0.5
"""Seconds between two drawings, at least: each waits for the device to know the loss."""


class StageBar(ProgressBar):
    """One line, such as ``pruning  120/1260  1:02 left  loss 0.41  density 0.52  accuracy 80.1``.

    Args:
        stage: What is trained: the baseline, the pruning, the refill.
        console: Where to draw; by default the terminal.
    """

    def __init__(self, stage: str, console: Console | None = None) -> None:
        super().__init__()
        self.stage = stage
        self._console = console or Console()
        self._live: Live | None = None
        self._enabled = True
        self._begun, self._first, self._drawn = 0.0, 0, 0.0

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
        self._begun, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Draw it, if the last drawing is old enough."""
        if self._due():
            self._draw(self._training(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last line, which stays."""
        if self._enabled:
            self._draw(self._training(trainer, pl_module))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """How far a validation is."""
        if self._due() and not trainer.sanity_checking:
            fitting = trainer.state.fn == TrainerFn.FITTING
            stage = [self.stage, f"{trainer.global_step}/{_steps(trainer)}"] if fitting else []
            self._draw([*stage, f"validating {batch_idx + 1}/{_batches(trainer.num_val_batches)}"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation outside training ends the line; Lightning prints its table."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """How far a test is."""
        if self._due():
            self._draw([f"testing {batch_idx + 1}/{_batches(trainer.num_test_batches)}"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the line; Lightning prints its table."""
        self._close()

    # -- the line ------------------------------------------------------------------------------------------------------

    def _training(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        done, total = trainer.global_step, _steps(trainer)
        parts = [self.stage, f"{done}/{total}"]
        if isinstance(total, int) and done > self._first:
            seconds = (time.monotonic() - self._begun) / (done - self._first) * (total - done)
            parts.append(f"{clock(seconds)} left" if done < total else f"in {clock(time.monotonic() - self._begun)}")
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        monitor = getattr(getattr(pl_module, "task", None), "monitor", None)
        density = found.get("density/total", found.get("val_density"))
        values = {"loss": found.get("task_loss"), "density": density, monitor: found.get(f"val_{monitor}")}
        return parts + [f"{name} {value:.4g}" for name, value in values.items() if value is not None]

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


def _steps(trainer: Trainer) -> int | str:
    """Optimizer steps of the whole training, or ``?`` where it has no end."""
    total = trainer.estimated_stepping_batches
    return int(total) if total != float("inf") else "?"


def _batches(counts: Sequence[int | float]) -> str:
    """Batches of an evaluation, or ``?`` where there is no end of them."""
    return str(int(counts[0])) if counts and counts[0] != float("inf") else "?"


def clock(seconds: float) -> str:
    """A time as a clock shows it.

    >>> clock(62.4), clock(3723)
    ('1:02', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of the parts as one line of a terminal has room for; none is cut in two.

    >>> fitted(["pruning", "120/1260", "1:02 left", "loss 0.41"], 32)
    'pruning  120/1260  1:02 left'
    """
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line
