"""Rows and tiny models of the hard cases that later families bring; the rows are not shipped yet."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families import HEADS, HIDDEN, LAYERS, UNITS, VOCABULARY, randomize, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from bplightning.families import FAMILIES, AttentionNames, Family, FeedForwardNames, Stack
from bplightning.layout import PrunableLayout


def _t5_stack(name: str) -> Stack:
    cross = AttentionNames(
        "layer.1.EncDecAttention",
        *(f"layer.1.EncDecAttention.{part}" for part in "qkvo"),
        kind="cross",
    )
    own = AttentionNames(
        "layer.0.SelfAttention",
        *(f"layer.0.SelfAttention.{part}" for part in "qkvo"),
        position_bias=f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias",
    )
    last = "layer.1" if name == "encoder" else "layer.2"
    feed_forward = FeedForwardNames(
        up=(f"{last}.DenseReluDense.wi_0", f"{last}.DenseReluDense.wi_1"),
        down=f"{last}.DenseReluDense.wo",
        activation=f"{last}.DenseReluDense.act",
    )
    return Stack(f"{name}.block", (own,) if name == "encoder" else (own, cross), feed_forward, name=name)


_LLAMA_ATTENTION = AttentionNames("self_attn", *(f"self_attn.{part}_proj" for part in "qkvo"))
_LLAMA_RESIDUAL = {"embed_tokens.weight": 1, "*norm.weight": 0, "lm_head.weight": 1, "*.mlp.gate.weight": 1}

HARD_ROWS = {
    "t5": Family(
        stacks=(_t5_stack("encoder"), _t5_stack("decoder")),
        residual={"shared.weight": 1, "*layer_norm.weight": 0, "lm_head.weight": 1},
    ),
    "gpt2": Family(
        stacks=(
            Stack(
                "h",
                (AttentionNames("attn", *["attn.c_attn"] * 3, output="attn.c_proj", fused=True, transposed=True),),
                FeedForwardNames(up=("mlp.c_fc",), down="mlp.c_proj", activation="mlp.act", transposed=True),
                name="decoder",
            ),
        ),
        residual={"wte.weight": 1, "wpe.weight": 1, "*ln_*": 0},
    ),
    "qwen2": Family(
        stacks=(
            Stack(
                "layers",
                (_LLAMA_ATTENTION,),
                FeedForwardNames(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "mlp.act_fn"),
                name="decoder",
            ),
        ),
        residual=_LLAMA_RESIDUAL,
    ),
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

_DECODER = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "use_cache": False}
_QWEN2 = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    **_DECODER,
}
_HARD_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "t5": (
        AutoModelForSeq2SeqLM,
        {
            "d_model": HIDDEN,
            # Not hidden size / heads: the head size is its own number.
            "d_kv": 4,
            "d_ff": UNITS,
            "num_heads": HEADS,
            "num_layers": LAYERS,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
            **_DECODER,
        },
    ),
    "gpt2": (
        AutoModelForCausalLM,
        {"n_embd": HIDDEN, "n_head": HEADS, "n_inner": UNITS, "n_layer": LAYERS, "n_positions": 40, **_DECODER},
    ),
    "qwen2": (AutoModelForCausalLM, _QWEN2),
    "mixtral": (AutoModelForCausalLM, {**_QWEN2, "num_local_experts": 3, "num_experts_per_tok": 2}),
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
