"""Early stopping that waits until the model is pruned."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from bplightning.training.kept_checkpoints import is_pruned


class PrunedEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, which only counts validations after the strategy has reached its target.

    A model scores best before it is pruned, so that patience would run out while it is pruned. The arguments are those
    of EarlyStopping.
    """

    def _should_skip_check(self, trainer: Trainer) -> bool:
        return super()._should_skip_check(trainer) or not is_pruned(trainer)
