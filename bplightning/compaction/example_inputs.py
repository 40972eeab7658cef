"""Inputs of a shape for a model whose task nobody knows.

Legend: `B` rows of a batch, `L` tokens of each row.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.compaction.equivalence import made_images, takes_images


def positions_of(model: nn.Module) -> int | None:
    """How many tokens a model has room for in a row; `None` where its configuration sets no limit.

    Args:
        model: A transformers model.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            embedding: Any = module  # RoBERTa and its kin count from there
            positions = embedding.num_embeddings - embedding.padding_idx - 1
    return positions if positions is not None and positions > 0 else None  # XLNet writes -1 where there is no limit


def random_inputs(
    model: nn.Module, batch_size: int, length: int, *, vocabulary: int | None = None
) -> dict[str, Tensor]:
    """Inputs of one shape for a model whose task nobody knows: seeded random tokens, all attended, or images.

    Args:
        model: A transformers model.
        batch_size: Rows of the batch.
        length: Tokens in each row.
        vocabulary: Tokens to draw from; by default all that the model has.
    """
    if takes_images(model):
        return made_images(model, batch_size)
    config: Any = model.config
    tokens = vocabulary or config.vocab_size
    ids = torch.randint(tokens, (batch_size, length), generator=torch.Generator().manual_seed(0))
    end = config.eos_token_id
    if isinstance(end, int) and end < tokens:  # BART and T5 classify by it, and want as many in each row
        ids[ids == end] = (end + 1) % tokens
        ids[:, -1] = end
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = signature(model.forward).parameters
    if "token_type_ids" in taken and getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    network: Any = model
    if "decoder_input_ids" in taken and (network.can_generate() or network.base_model is network):
        inputs["decoder_input_ids"] = ids  # other heads make them of the text
    return inputs
