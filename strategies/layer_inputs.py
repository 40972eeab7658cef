"""What the output and down projections of a model read, gathered over calibration data.

Legend: `B` batch, `L` tokens, `I` in features, `N` tokens that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.resizing import Group
from bplightning.strategies.second_order import InputMoments

ENCODERS = ("attention", "feed_forward")
"""Roles whose tokens `attention_mask` is of; those of decoders beside an encoder have a mask of their own."""


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
            mask = batch.get("attention_mask" if group.role in ENCODERS else "decoder_attention_mask")
            live = mask is not None and mask.shape == inputs.shape[:-1]
            if group.name not in moments:
                moments[group.name] = InputMoments(inputs.shape[-1], inputs.device)
            moments[group.name].update(inputs[mask.bool()] if live and mask is not None else inputs.flatten(0, -2))

        return hook

    hooks = [model.get_submodule(group.members[-1].module).register_forward_pre_hook(gather(group)) for group in groups]
    try:
        for batch in batches:  # the hooks read it
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return moments
