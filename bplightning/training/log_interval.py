"""How often a run logs: its curves have about as many points whatever its length."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

POINTS = 50
"""Points that the curves of a run have at least, where it has as many steps."""

LONGEST = 50
"""Most optimizer steps between two points, Lightning's own number."""


class LogInterval(Callback):
    """Sets how often a trainer logs by how long it trains; for runs whose user has not said it.

    Lightning logs every 50 steps, which leaves two points of a run of a hundred steps.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log each step until the length is known, so that Lightning does not call the run too short to be logged."""
        if stage == "fit" and self._logs(trainer):
            trainer.log_every_n_steps = 1  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number, now that the trainer knows its data."""
        if self._logs(trainer):
            trainer.log_every_n_steps = interval(trainer.estimated_stepping_batches)  # type: ignore[attr-defined]

    def _logs(self, trainer: Trainer) -> bool:
        return trainer.log_every_n_steps > 0  # type: ignore[attr-defined]  # 0: never, `barebones`


def interval(steps: float) -> int:
    """Optimizer steps between two points of a run's curves.

    Args:
        steps: Optimizer steps of the run; infinite for one without an end.

    >>> interval(20), interval(126), interval(100_000), interval(math.inf)
    (1, 2, 50, 50)
    """
    return LONGEST if not math.isfinite(steps) else max(1, min(LONGEST, int(steps) // POINTS))
