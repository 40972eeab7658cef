"""What the output and down projections of a model read, gathered over calibration data.

Legend: `B` batch, `L` tokens, `I` in features, `N` tokens that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.layout.groups import AttentionGroup, Member
from bplightning.layout.resizing import Group
from bplightning.strategies.shared.second_order import InputMoments

ENCODERS = ("attention", "feed_forward")
"""Roles of encoders; what decoders beside one read has a mask of its own."""


def mask_name(model: nn.Module, group: Group, member: Member) -> str:
    """What a batch calls the mask of the tokens that a matrix reads.

    Args:
        model: The model.
        group: The group of the matrix.
        member: The matrix; a cross-attention's key and value read what the encoder gives, its others the decoder's.
    """
    config: Any = model.config
    encoders = (
        isinstance(group, AttentionGroup) and group.role == "cross_attention" and member in (group.key, group.value)
    )
    if not config.is_encoder_decoder or group.role in ENCODERS or encoders:
        return "attention_mask"
    return "decoder_attention_mask"


def real_rows(inputs: Tensor, mask_BL: Tensor | None) -> Tensor:
    """What goes into a matrix as rows ``(N, I)``, without those of padding.

    Args:
        inputs: What goes in, ``(B, L, I)`` or, examples one after the other, ``(B * L, I)``.
        mask_BL: 0 for padding; with `None`, or where it is of other tokens, all rows are real.
    """
    rows_NI = inputs.flatten(0, -2)
    if mask_BL is None or mask_BL.numel() != len(rows_NI):
        return rows_NI
    return rows_NI[mask_BL.flatten().to(rows_NI.device).bool()]


@torch.no_grad()
def input_moments(
    model: nn.Module, groups: Sequence[Group], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, InputMoments]:
    """Mean and products of what the last projection of each group reads; padding is left out.

    A layer that is used several times, as ALBERT's, sees the inputs of all its uses.

    Args:
        model: The model, in evaluation mode.
        groups: Its groups.
        batches: What its ``forward`` takes.

    Returns:
        Name of each group to its moments.
    """
    moments: dict[str, InputMoments] = {}
    batch: Mapping[str, Tensor] = {}

    def gather(group: Group) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs: Tensor = args[0]
            if group.name not in moments:
                moments[group.name] = InputMoments(inputs.shape[-1], inputs.device)
            name = mask_name(model, group, group.members[-1])
            moments[group.name].update(real_rows(inputs, batch.get(name)))

        return hook

    hooks = [model.get_submodule(group.members[-1].module).register_forward_pre_hook(gather(group)) for group in groups]
    try:
        for batch in batches:  # the hooks read it
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return moments
