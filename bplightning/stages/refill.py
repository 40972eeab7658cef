"""Refill: fine-tuning the compact model, in which zeros inside what survived may grow back.

The papers' "hybrid-filled" (Lagunas et al. 2021, arXiv 2109.04838, section 5.2): a block-pruned head that survives is
stored dense in the compact model, so its zeros cost as much as weights and may as well be some.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from bplightning.contracts.strategy import PruningStrategy
from bplightning.distillation.distillation import Distillation, states_width
from bplightning.errors import UserError
from bplightning.io.run_folder import RunFolder
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import masks_of
from bplightning.training.checkpoint_files import find_checkpoint, folder_of, read_checkpoint, require_same_weights
from bplightning.training.module import PruningModule, check_warmup


class Refill:
    """Fine-tuning of the compact model at the end of `fit`, with the run's data, teacher and trainer.

    Args:
        max_epochs: Epochs of it, 0 or more; 0 for none. The papers take 4 to 10.
        learning_rate: Learning rate of the weights, above 0. Default: the one they were pruned with.
        warmup: Learning-rate warm-up: a fraction of its optimizer steps if below 1, else a number of them.
        hold_masks: Whether zeros inside what survived stay zeros.
        heads: Which heads go before it: `exact`, those that do nothing; or `any`, by the paper's rule also those of
            whose query, key or value nothing is left, which changes what the model computes.
    """

    def __init__(
        self,
        max_epochs: int = 0,
        learning_rate: float | None = None,
        warmup: float = 0.05,
        hold_masks: bool = False,
        heads: Literal["exact", "any"] = "exact",
    ) -> None:
        if max_epochs < 0:
            raise UserError(f"refill's max_epochs is {max_epochs}; it must be 0, for none, or more.")
        if learning_rate is not None and not learning_rate > 0:
            raise UserError(f"refill's learning_rate is {learning_rate:g}; it must be above 0.")
        check_warmup(warmup, what="refill's warmup")
        if heads not in ("exact", "any"):
            raise UserError(f"refill's heads is {heads!r}; it must be 'exact', or 'any' for the paper's rule.")
        given = {"learning_rate": learning_rate is not None, "hold_masks": hold_masks, "heads": heads != "exact"}
        if not max_epochs and (idle := [name for name, is_given in given.items() if is_given]):
            raise UserError(
                f"refill's {' and '.join(idle)} would do nothing, since its max_epochs is 0, which is no refill: give "
                f"epochs, or leave {'it' if len(idle) == 1 else 'them'} out"
                f"{' (heads: exact, where a file says any)' if heads == 'any' else ''}."
            )
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.warmup = warmup
        self.hold_masks = hold_masks
        self.heads = heads


class HeldZeros(PruningStrategy):
    """Holds the zeros of a model's prunable weights where they are; everything else learns."""

    def attach(self, layout: PrunableLayout) -> None:
        """A mask a member, of single weights."""
        for group in layout.groups:
            for name, mask in masks_of(layout.model, group, "element", scores=False):
                (cover,) = mask.covers
                self.add_mask(name, mask, layout)
                mask.set_grid(cover.member.weight(layout.model) != 0)


def refill(
    trainer: Trainer, pruned: PruningModule, model: PreTrainedModel, settings: Refill, *, resume: bool = False
) -> PreTrainedModel:
    """Fine-tune a compact model with the data, teacher and optimizer of the run that pruned it.

    Args:
        trainer: A trainer of its own.
        pruned: The module that pruned it.
        model: The compact model; it is trained in place.
        settings: What the refill is to be like.
        resume: Whether to go on from a checkpoint that the trainer's folder may hold.

    Returns:
        The model, in evaluation mode.
    """
    rank_zero_info(f"Refilling: {settings.max_epochs} epochs of fine-tuning the compact model.")
    module = _module(pruned, model, settings)
    checkpoint = find_checkpoint(RunFolder(folder_of(trainer)).checkpoints) if resume else None
    trainer.fit(module, datamodule=pruned.task, ckpt_path=checkpoint)
    return module.harden().eval()


def refilled(pruned: PruningModule, model: PreTrainedModel, settings: Refill, checkpoint: Path) -> PreTrainedModel:
    """A compact model as an earlier refill left it.

    Args:
        pruned: The module that pruned it.
        model: The compact model before its refill; it takes the weights.
        settings: What the refill was like.
        checkpoint: The refill's last checkpoint.

    Raises:
        UserError: The checkpoint is damaged, or of another model.
    """
    module = _module(pruned, model, settings)
    module.configure_model()
    saved = read_checkpoint(checkpoint)
    require_same_weights(saved, module, path=checkpoint, training=False)
    module.load_state_dict(saved["state_dict"])
    return module.harden().eval()


def _module(pruned: PruningModule, model: PreTrainedModel, settings: Refill) -> PruningModule:
    module = PruningModule(
        pruned.task,
        HeldZeros() if settings.hold_masks else PruningStrategy(),
        learning_rate=settings.learning_rate or pruned.learning_rate,
        warmup=settings.warmup,
        weight_decay=pruned.weight_decay,
        adam_epsilon=pruned.adam_epsilon,
        distillation=_distillation(pruned, model),
        activation_checkpointing=pruned.activation_checkpointing,
    )
    module.model = model
    module.baseline = pruned.baseline
    return module


def _distillation(pruned: PruningModule, model: PreTrainedModel) -> Distillation:
    """That of the run; without hidden states, where the compact model's have lost dimensions the teacher's have."""
    settings = pruned.distillation
    if not settings.alpha_hidden or states_width(model) == states_width(pruned.model):
        return settings
    rank_zero_info("The compact model's hidden states are narrower than the teacher's: the refill leaves them out.")
    settings = copy.copy(settings)
    settings.alpha_hidden = 0.0
    return settings


@torch.no_grad()
def remove_partial_heads(model: PreTrainedModel) -> list[tuple[str, int]]:
    """Zero the values of heads of whose query, key or value no weight is left: the paper's rule.

    Such a head still mixes values, if nearly alike for all tokens; what it gives is lost but for its values' bias, and
    exact compaction then takes it.

    Args:
        model: A model whose weights hold zeros, without masks; changed in place.

    Returns:
        Group and index of every head (key/value head where queries are grouped) that lost something by it.
    """
    lost = []
    for group in PrunableLayout.of(model).attention:
        if not group.kv_heads:
            continue
        value, size = group.value.weight(model), group.head_size
        projections = (member.weight(model).reshape(group.kv_heads, -1) for member in (group.query, group.key))
        partial = torch.stack([(weight == 0).all(1) for weight in projections]).any(0)
        read = (group.output.weight(model) != 0).any(0).view(group.kv_heads, -1, size).any(1)
        alive = ((value != 0).any(1).view(group.kv_heads, size) & read).any(1)
        for head in (partial & alive).nonzero().flatten().tolist():
            value[head * size : (head + 1) * size] = 0
            lost.append((group.name, head))
    return lost
