"""Tiny configurations of the decoder-only families."""

from __future__ import annotations

from typing import Any

from tiny_sizes import HEADS, HIDDEN, LAYERS, UNITS, VOCABULARY
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HIDDEN // HEADS,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 40,
    **_TOKENS,
}
_GPT2 = {"n_embd": HIDDEN, "n_head": HEADS, "n_inner": UNITS, "n_layer": LAYERS, "n_positions": 40, **_TOKENS}
_OPT = {
    "hidden_size": HIDDEN,
    "word_embed_proj_dim": HIDDEN,
    "num_attention_heads": HEADS,
    "ffn_dim": UNITS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 40,
    **_TOKENS,
}

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma": (AutoModelForCausalLM, _LLAMA),
    "gpt2": (AutoModelForQuestionAnswering, _GPT2),
    "llama": (AutoModelForQuestionAnswering, {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "mistral": (AutoModelForQuestionAnswering, _LLAMA),
    "opt": (AutoModelForQuestionAnswering, _OPT),
    "qwen2": (AutoModelForQuestionAnswering, _LLAMA),
    # The head size is its own number there.
    "qwen3": (AutoModelForQuestionAnswering, {**_LLAMA, "head_dim": 4, "attention_bias": True}),
}
"""Model type to its class and configuration."""

EAGER_IN_FLOAT32 = tuple(model_type for model_type in CONFIGS if model_type != "gpt2")
"""Model types whose eager attention takes its softmax in float32, whatever the model's own precision: in float64 that
rounds, and overflows where a row of padding sees nothing."""
