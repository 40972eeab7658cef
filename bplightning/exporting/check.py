"""Comparing exported graphs with the model in torch, on random inputs and on real text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from bplightning.compaction.example_inputs import as_taken, has_token_types, positions_of, takes_images
from bplightning.compaction.saved_models import read_part
from bplightning.errors import UserError
from bplightning.exporting.graphs import Call, Parts, serves_as_decoder

LIMITS = {torch.float32: 1e-4, torch.float16: 5e-2}
"""Largest difference that rounding may cause, relative to the largest output of torch in float32.

It is wider than between two models in torch, since another library's kernels add up in another order. The error of a
wrong graph is far larger.
"""

TEXTS = (
    "The ferry to the island was late again.",
    "Who repaired the clock of the old station, and when was it that trains stopped there for the last time?",
    "Good.",
    "A short film about a lighthouse keeper, warm and funny, although the last half hour drags on.",
)


def text_inputs(model: PreTrainedModel, folder: Path) -> dict[str, Tensor] | None:
    """A few sentences as inputs of `forward`, in pairs if the model tells two texts apart.

    `None` where the folder has no tokenizer that could encode them.

    Args:
        model: The model.
        folder: Its folder.
    """
    if takes_images(model) or not any(folder.glob("tokenizer*")):
        return None
    try:
        tokenizer: Any = read_part(AutoTokenizer, folder, what="the tokenizer")
    except UserError:
        return None
    if len(tokenizer) > model.config.vocab_size or (tokenizer.pad_token is None and tokenizer.eos_token is None):
        return None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    room = min(64, positions_of(model) or 64)
    side = "right" if serves_as_decoder(model) else tokenizer.padding_side
    pairs = list(reversed(TEXTS)) if has_token_types(model) else None
    encoded = tokenizer(
        list(TEXTS), pairs, padding=True, truncation=True, max_length=room, padding_side=side, return_tensors="pt"
    )
    return as_taken(model, encoded, decoder_length=max(2, encoded["input_ids"].shape[1] // 2))


@torch.no_grad()
def largest_difference(
    model: PreTrainedModel, parts: Parts, calls: Mapping[str, Call], inputs: Mapping[str, Tensor]
) -> float:
    """The largest difference of two outputs, divided by the largest output of torch; padding is not compared.

    Args:
        model: The reference, in float32.
        parts: The exported parts.
        calls: Name of each graph to the function that computes it.
        inputs: Inputs of the model's `forward`.
    """
    expected = model(**parts.placed(inputs))
    mask = inputs.get("attention_mask")
    found = largest = 0.0
    for name, got in parts.compute(calls, inputs).items():
        right, got = expected[name], got.float()
        if mask is not None and right.shape[:2] == mask.shape and not model.config.is_encoder_decoder:
            right, got = right[mask.bool()], got[mask.bool()]  # a decoder sees no key at all at padding on the left
        largest = max(largest, float(right.abs().max()))
        difference = float((right - got).abs().max())
        found = max(found, difference) if difference == difference else float("inf")
    return found / largest if largest else found
