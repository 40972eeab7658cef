"""Tiny random models of every family, and zeros to put into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from bplightning.layout import AttentionGroup, PrunableLayout

HIDDEN, HEADS, UNITS, LAYERS, VOCABULARY = 32, 4, 24, 3, 60

_SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
_DISTILBERT_SIZES = {
    "dim": HIDDEN,
    "n_heads": HEADS,
    "hidden_dim": UNITS,
    "n_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}


def tiny(
    model_type: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    auto: type = AutoModelForQuestionAnswering,
    **config: object,
) -> PreTrainedModel:
    """A model whose parameters are all random, biases and norms included, in evaluation mode."""
    sizes = _DISTILBERT_SIZES if model_type == "distilbert" else _SIZES
    torch.manual_seed(seed)
    made = AutoConfig.for_model(model_type, **(sizes | config))
    model = auto.from_config(made, attn_implementation=attention)  # type: ignore[attr-defined]
    randomize(model)
    return model.to(dtype).eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Weights of a size at which activations stay near one, biases and norms that are neither 0 nor 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.uniform_(-0.5, 0.5)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)


@torch.no_grad()
def zero_randomly(model: nn.Module, granularity: str, *, seed: int, density: float = 0.4) -> None:
    """Put zeros into the weights of every group, in the pattern that pruning by `granularity` leaves."""
    generator = torch.Generator().manual_seed(seed)

    def keep(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < density

    for group in PrunableLayout.of(model).groups:
        *readers, writer = group.members
        rows = readers[-1].weight(model).shape[0]
        if granularity in ("heads", "units"):
            size = group.head_size if isinstance(group, AttentionGroup) else 1
            kept = keep(rows // size).repeat_interleave(size)
            for reader in readers:
                reader.weight(model)[~kept] = 0
                if granularity == "units" and reader.bias_of(model) is not None:
                    reader.bias_of(model)[~kept] = 0  # type: ignore[index]
            writer.weight(model)[:, ~kept] = 0
            continue
        for member in group.members:
            weight = member.weight(model)
            tile = {"blocks": (4, 4), "rows": (1, weight.shape[1]), "columns": (weight.shape[0], 1), "elements": (1, 1)}
            r, c = tile[granularity]
            grid = keep(weight.shape[0] // r, weight.shape[1] // c)
            weight.mul_(grid.repeat_interleave(r, 0).repeat_interleave(c, 1))


def padded_inputs(side: str, *, seed: int = 0, batch: int = 3, length: int = 11) -> dict[str, Tensor]:
    """Random tokens, the second row padded a little and the third a lot on `side`."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, VOCABULARY, (batch, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, padding in [(1, 3), (2, length - 1)][: batch - 1]:
        attention_mask[row, slice(length - padding, None) if side == "right" else slice(0, padding)] = 0
    input_ids[attention_mask == 0] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
