"""Seeded random inputs for a model whose task is not known: tokens, with or without padding, or images.

Legend: `B` rows of a batch, `L` tokens of each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

PADDED_LENGTH = 32
"""Tokens in a row of `comparison_inputs`, where nothing else is asked for and the model has room for twice as many."""


def takes_images(model: nn.Module) -> bool:
    """Whether a model reads pixels instead of tokens."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def image_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, in pixels, of a size that a configuration gives as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def positions_of(model: nn.Module) -> int | None:
    """How many tokens a model has room for in a row; `None` where its configuration sets no limit.

    Args:
        model: A transformers model.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            embedding: Any = module  # RoBERTa and its relatives count positions from the padding's id
            positions = embedding.num_embeddings - embedding.padding_idx - 1
    return positions if positions is not None and positions > 0 else None  # XLNet writes -1 where there is no limit


def random_images(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Seeded random images of the size that the model is made for, in its precision."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, config.num_channels, *image_sides(config.image_size), generator=generator)
    return {"pixel_values": images.to(next(model.parameters()))}


def random_inputs(
    model: nn.Module, batch_size: int, length: int, *, vocabulary: int | None = None
) -> dict[str, Tensor]:
    """Inputs of one shape without padding: seeded random tokens, or images. They are on the model's device.

    Args:
        model: A transformers model.
        batch_size: Rows of the batch.
        length: Tokens in each row.
        vocabulary: Number of tokens to draw from; by default all that the model has.
    """
    if takes_images(model):
        return random_images(model, batch_size)
    config: Any = model.config
    tokens = vocabulary or config.vocab_size
    input_ids = torch.randint(tokens, (batch_size, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    for end in _ends(model)[:1]:
        if end < tokens:
            input_ids[input_ids == end] = (end + 1) % tokens
            _end_rows(input_ids, mask, end)
    return as_taken(model, {"input_ids": input_ids, "attention_mask": mask}, decoder_length=length)


def comparison_inputs(model: nn.Module, *, rows: int = 4, length: int | None = None) -> dict[str, Tensor]:
    """Inputs on which two models are compared: seeded random tokens, padded from the second row on, or images.

    Rows are padded on the right and the left by turns, but only on the right for an encoder that serves as a decoder,
    whose positions ignore padding. The inputs are on the model's device.

    Args:
        model: A transformers model.
        rows: Rows of the batch.
        length: Tokens in each row, fewer where the model has no room for them; by default 32, or half of that room.
    """
    if takes_images(model):
        return random_images(model, rows)
    config: Any = model.config
    room = positions_of(model)
    length = max(4, min(PADDED_LENGTH, (room or 64) // 2)) if length is None else min(length, room or length)
    generator = torch.Generator().manual_seed(0)
    special = {config.pad_token_id, *_ends(model)}
    plain = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    input_ids = plain[torch.randint(len(plain), (rows, length), generator=generator)]
    mask = torch.ones_like(input_ids)
    for row in range(1, rows):
        padding = length // 4 if row < 3 else length - length // 4  # a little, on either side; then a lot
        if row % 2 == 0 and not getattr(config, "is_decoder", False):
            mask[row, :padding] = 0
        else:
            mask[row, length - padding :] = 0
    for end in _ends(model)[:1]:
        _end_rows(input_ids, mask, end)
    input_ids[mask == 0] = config.pad_token_id or 0
    types = torch.randint(max(1, getattr(config, "type_vocab_size", 0)), input_ids.shape, generator=generator)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
    return as_taken(model, inputs, decoder_length=max(2, length // 2))


def as_taken(model: nn.Module, inputs: Mapping[str, Tensor], *, decoder_length: int) -> dict[str, Tensor]:
    """The inputs that a model reads, on its device, with those of a decoder where it needs them.

    Args:
        model: A transformers model.
        inputs: ``input_ids`` and ``attention_mask``, and possibly ``token_type_ids``, each ``(B, L)``.
        decoder_length: Tokens in each row that the decoder of an encoder-decoder model reads.
    """
    network: Any = model
    parameters, ids = signature(model.forward).parameters, inputs["input_ids"]
    taken = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if has_token_types(model):
        taken["token_type_ids"] = inputs.get("token_type_ids", torch.zeros_like(ids))
    if "decoder_input_ids" in parameters and (network.can_generate() or network.base_model is network):
        taken["decoder_input_ids"] = ids[:, :decoder_length]  # other heads make it from the text
    return {name: tensor.to(next(model.parameters()).device) for name, tensor in taken.items()}


def has_token_types(model: nn.Module) -> bool:
    """Whether a model tells a first text from a second; RoBERTa and its relatives have the argument, but one type."""
    named = "token_type_ids" in signature(model.forward).parameters
    return named and getattr(model.config, "type_vocab_size", 0) > 1


def _ends(model: nn.Module) -> list[int]:
    """The tokens that end a sequence."""
    end: Any = getattr(model.config, "eos_token_id", None)
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _end_rows(input_ids: Tensor, mask: Tensor, end: int) -> None:
    """Write `end` over the last token of each row: BART and T5 classify by it, and need the same number in each row."""
    last = (mask * torch.arange(mask.shape[1])).argmax(1)
    input_ids[torch.arange(len(mask)), last] = end
