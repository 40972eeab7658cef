"""Warning when pruning removes a whole layer early, while there is time to stop and choose other settings."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from bplightning.contracts.capabilities import Advising

NAMED = 6
"""Most masks that a warning names."""


class CollapseWarning(Callback):
    """Warns about masks that keep nothing, at validations before the target is reached; every `PruningModule` adds it.

    Each mask is named once. A network can do without all heads or units of a layer, and a well-pruned one often does.
    But an empty layer early in training, or an empty role, often means that its scores fall faster than the others'.
    """

    def __init__(self) -> None:
        self._named: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the masks after a validation."""
        module: Any = pl_module
        masks = module.strategy.masks
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not masks or module.target_reached():
            return
        left = torch.stack([mask.kept.any() for mask in masks.values()]).tolist()
        empty = [name for name, any_left in zip(masks, left, strict=True) if not any_left and name not in self._named]
        if not empty:
            return
        self._named.update(empty)
        density = {role: float(value) for role, value in module.strategy.density().items()}
        gone = [role for role, value in density.items() if not value]
        advising = module.strategy.capability(Advising)
        remedies = () if advising is None else advising.collapse_remedies
        shown = ", ".join(empty[:NAMED]) + (f" and {len(empty) - NAMED} more" if len(empty) > NAMED else "")
        rank_zero_warn(
            f"Nothing is left of {shown} at step {trainer.global_step}, and pruning continues (density "
            f"{density['total']:.3f}){'; all of ' + ' and '.join(gone) + ' is gone' if gone else ''}. Where the score "
            f"falls with it: prune less, or train longer{'; or give ' + ', or '.join(remedies) if remedies else ''}."
        )
