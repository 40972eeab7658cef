"""Numbers too small for full precision count as zero while a model trains."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class FlushDenormals(Callback):
    """Flush denormal numbers to zero during training only, however training ends.

    Adam's moments of weights without gradients (masked, or of tokens that do not occur) shrink by a tenth in each step,
    and finally to denormal numbers, with which CPUs are slow.
    """

    def __init__(self) -> None:
        self._flushes = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, unless the calling program does so already."""
        self._flushes = not flushed() and torch.set_flush_denormal(True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End."""
        self._end()

    def _end(self) -> None:
        if self._flushes:
            torch.set_flush_denormal(False)
            self._flushes = False


def flushed() -> bool:
    """Whether denormal numbers count as zero now."""
    return not (torch.tensor(1e-40) / 2).item()
