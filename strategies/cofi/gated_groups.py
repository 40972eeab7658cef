"""Which models can have CoFi's gates, and what each gate of a head or unit multiplies."""

from __future__ import annotations

from typing import Any

from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, size_of
from bplightning.masks.masking import Cover, Mask


def refuse_others(layout: PrunableLayout) -> None:
    """Refuse a model if it is not known where a sub-layer's output is added and normalized.

    Raises:
        UserError: It is such a model, or nothing is left of it.
    """
    model: Any = layout.model
    if unknown := [group.name for group in layout.groups if group.adds is None]:
        raise UserError(
            f"cofi prunes encoders whose sub-layers each end in a LayerNorm of the residual stream: BERT, RoBERTa, "
            f"CamemBERT, XLM-RoBERTa and ELECTRA. Of a {model.config.model_type!r} model it does not know where "
            f"{unknown[0]} ends: take another strategy, such as hybrid or l0."
        )
    if not any(size_of(group) for group in layout.groups):
        raise UserError("cofi finds no head and no unit left to prune: give a model that has some.")


def mask_of(layout: PrunableLayout, group: Group) -> Mask:
    """A gate for each head or unit, on what reads it; with it goes what only it reads."""
    *readers, writer = group.members
    covers = (Cover(writer, transposed=True), *(Cover(reader, idle=True) for reader in readers))
    total = sum(member.weight(layout.model).numel() for member in group.members)
    entries = group.kv_heads if isinstance(group, AttentionGroup) else group.width
    return Mask(group.role, covers, (entries, 1), total)
