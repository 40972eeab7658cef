"""A tiny random BERT on which strategies are tested, and inputs for it. No files, no network.

Legend: `B` batch, `L` tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedModel

VOCABULARY, PADDING = 60, 1


@torch.no_grad()
def tiny_bert() -> PreTrainedModel:
    """Two layers of four heads and 48 units, all parameters random, biases and norms too; in evaluation mode."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        pad_token_id=PADDING,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForQuestionAnswering(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
                continue
            parameter.uniform_(-0.5, 0.5)
            if "LayerNorm.weight" in name:
                parameter.add_(1)
    return model.eval()


def padded_inputs(*, seed: int) -> dict[str, Tensor]:
    """Random tokens ``(B, L)``: one row without padding, one with a little and one with a lot."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, VOCABULARY, (3, 11), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 8:] = 0
    attention_mask[2, 1:] = 0
    input_ids[attention_mask == 0] = PADDING
    return {"input_ids": input_ids, "attention_mask": attention_mask}
