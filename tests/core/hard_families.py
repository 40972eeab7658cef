"""Rows and tiny models of the hard cases that later families bring; the rows are not shipped yet."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families import HEADS, HIDDEN, LAYERS, UNITS, VOCABULARY, randomize, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bplightning.families import FAMILIES, AttentionNames, Family, FeedForwardNames, Stack
from bplightning.layout import PrunableLayout

_LLAMA_ATTENTION = AttentionNames("self_attn", *(f"self_attn.{part}_proj" for part in "qkvo"))
_LLAMA_RESIDUAL = {"embed_tokens.weight": 1, "*norm.weight": 0, "lm_head.weight": 1, "*.mlp.gate.weight": 1}

HARD_ROWS = {
    "mixtral": Family(
        stacks=(
            Stack(
                "layers",
                (_LLAMA_ATTENTION,),
                FeedForwardNames(("gate_up_proj",), "down_proj", "mlp.experts.act_fn", experts="mlp.experts"),
                name="decoder",
            ),
        ),
        residual=_LLAMA_RESIDUAL,
    ),
}

_HARD_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixtral": (
        AutoModelForCausalLM,
        {
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "intermediate_size": UNITS,
            "num_hidden_layers": LAYERS,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "vocab_size": VOCABULARY,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "use_cache": False,
        },
    ),
}

EVERY_ROW = [*FAMILIES, *HARD_ROWS]


def make(model_type: str) -> tuple[nn.Module, PrunableLayout]:
    """A tiny model of a shipped family or of a hard case, in float64, and its layout."""
    if model_type in FAMILIES:
        model: nn.Module = tiny(model_type, dtype=torch.float64, attention="eager")
        return model, PrunableLayout.of(model)
    auto, config = _HARD_CONFIGS[model_type]
    torch.manual_seed(0)
    options = {"experts_implementation": "eager"} if model_type == "mixtral" else {}
    model = auto.from_config(AutoConfig.for_model(model_type, **config), attn_implementation="eager", **options)
    randomize(model)
    model = model.double().eval()
    return model, PrunableLayout.of(model, HARD_ROWS[model_type])
