"""Tiny configurations of the encoder-decoder families."""

from __future__ import annotations

from typing import Any

from tiny_sizes import HEADS, HIDDEN, LAYERS, UNITS, VOCABULARY
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM

_TOKENS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 0,
}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": 4,  # not hidden size / heads: the head size is its own number
    "d_ff": UNITS,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    **_TOKENS,
}
_BART = {
    "d_model": HIDDEN,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": UNITS,
    "decoder_ffn_dim": UNITS,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "max_position_embeddings": 40,
    **_TOKENS,
}

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bart": (AutoModelForQuestionAnswering, _BART),
    "blenderbot": (AutoModelForSeq2SeqLM, _BART),
    "blenderbot-small": (AutoModelForSeq2SeqLM, _BART),
    "marian": (AutoModelForSeq2SeqLM, _BART),
    "mbart": (AutoModelForQuestionAnswering, _BART),
    "mt5": (AutoModelForQuestionAnswering, {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "pegasus": (AutoModelForSeq2SeqLM, _BART),
    "plbart": (AutoModelForSeq2SeqLM, _BART),
    "t5": (AutoModelForQuestionAnswering, {**_T5, "feed_forward_proj": "relu"}),
    "umt5": (AutoModelForQuestionAnswering, {**_T5, "feed_forward_proj": "gated-gelu"}),
}
"""Model type to its class and configuration."""
