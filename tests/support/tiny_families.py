"""Tiny random models of every family, and zeros to put into them."""

from __future__ import annotations

import tiny_decoders
import tiny_encoder_decoders
import tiny_encoders
import tiny_experts
import torch
from tiny_sizes import HEADS, HIDDEN, LAYERS, UNITS, VOCABULARY
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from bplightning.compaction.example_inputs import random_images, takes_images
from bplightning.layout.families import FAMILIES
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout

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
_CONFIGS = {
    "distilbert": (AutoModelForQuestionAnswering, _DISTILBERT_SIZES),
    **tiny_encoders.CONFIGS,
    **tiny_encoder_decoders.CONFIGS,
    **tiny_decoders.CONFIGS,
    **tiny_experts.CONFIGS,
}
EAGER_ONLY = tiny_encoders.EAGER_ONLY
"""Model types that know no other attention."""

EAGER_IN_FLOAT32 = (*tiny_encoders.EAGER_IN_FLOAT32, *tiny_decoders.EAGER_IN_FLOAT32)
"""Model types whose eager attention takes its softmax in float32, whatever the model's own precision: in float64 that
rounds, and overflows where a row of padding sees nothing."""

DENSE = [model_type for model_type in FAMILIES if model_type not in tiny_experts.CONFIGS]
"""Families whose feed-forward layers can lose units; experts, stacked, go as a whole, and have tests of their own."""

# The last one counts: the first in the table, and of Llama's kin the one with biases.
_BY_ROW = {id(FAMILIES[model_type]): model_type for model_type in [*reversed(DENSE), "llama"]}
ONE_OF_EACH_ROW = sorted(_BY_ROW.values())
"""One of the model types that share a row: what is read and resized alike need be tried in full only once."""


def auto_of(model_type: str) -> type:
    """The Auto class of the tiny models of a type."""
    model_type, _ = tiny_encoders.VARIANTS.get(model_type, (model_type, {}))
    return _CONFIGS.get(model_type, (AutoModelForQuestionAnswering,))[0]


def tiny(
    model_type: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    auto: type | None = None,
    **config: object,
) -> PreTrainedModel:
    """A model whose parameters are all random, biases and norms included, in evaluation mode."""
    model_type, changes = tiny_encoders.VARIANTS.get(model_type, (model_type, {}))
    usual, sizes = _CONFIGS.get(model_type, (AutoModelForQuestionAnswering, _SIZES))
    config = changes | config
    torch.manual_seed(seed)
    made = AutoConfig.for_model(model_type, **(sizes | config))
    if model_type in EAGER_ONLY:
        attention = "eager"
    # transformers' usual way to run experts knows no float64.
    options = {"experts_implementation": "eager"} if model_type in tiny_experts.CONFIGS else {}
    model = (auto or usual).from_config(made, attn_implementation=attention, **options)  # type: ignore[attr-defined]
    randomize(model)
    return model.to(dtype).eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Weights of a size at which activations stay near one, biases and norms that are neither 0 nor 1."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # sines and cosines: no file holds them
            continue
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
            attention = isinstance(group, AttentionGroup)
            size = group.head_size if attention else 1
            queries = group.heads // max(group.kv_heads, 1) if attention else 1  # to one key/value head
            alone = keep(rows // size)
            kept, kept_queries = alone.repeat_interleave(size), alone.repeat_interleave(size * queries)
            for reader in readers:
                alive = kept_queries if attention and reader is group.query else kept
                reader.weight(model)[~alive] = 0
                if granularity == "units" and reader.bias_of(model) is not None:
                    reader.bias_of(model)[~alive] = 0  # type: ignore[index]
            writer.weight(model)[:, ~kept_queries] = 0
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


def inputs_for(model: PreTrainedModel, side: str, **options: int) -> dict[str, Tensor]:
    """`padded_inputs`, for a decoder beside an encoder other tokens, fewer and without padding; or images."""
    if takes_images(model):
        return random_images(model, options.get("batch", 3))
    inputs = padded_inputs(side, **options)
    if model.config.is_encoder_decoder:
        generator = torch.Generator().manual_seed(1)
        shape = len(inputs["input_ids"]), inputs["input_ids"].shape[1] - 3
        inputs["decoder_input_ids"] = torch.randint(2, VOCABULARY, shape, generator=generator)
    return inputs


def tensors_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `model` says of `inputs`, but for caches."""
    return {name: value for name, value in model(**inputs).items() if isinstance(value, Tensor)}
