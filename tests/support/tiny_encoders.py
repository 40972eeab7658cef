"""Tiny configurations of the encoder families."""

from __future__ import annotations

from typing import Any

from tiny_sizes import HEADS, HIDDEN, LAYERS, UNITS, VOCABULARY
from transformers import AutoModelForImageClassification, AutoModelForQuestionAnswering

_SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
_BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
_TEXT = AutoModelForQuestionAnswering

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    # As many groups as layers: what sharing means has tests of its own.
    "albert": (_TEXT, {**_SIZES, "embedding_size": HIDDEN // 2, "num_hidden_groups": LAYERS}),
    "deberta-v2": (
        _TEXT,
        {
            **_SIZES,
            # As version 3 is configured, but for keys and queries of positions that are projected apart.
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 4,
            "position_biased_input": False,
        },
    ),
    "modernbert": (
        _TEXT,
        {
            **_SIZES,
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            **dict.fromkeys(_BIASES, True),
            **dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0),
        },
    ),
    "vit": (
        AutoModelForImageClassification,
        {
            **{name: _SIZES[name] for name in list(_SIZES)[:4]},
            "image_size": 12,
            "patch_size": 4,
            "num_channels": 2,
            "num_labels": 3,
        },
    ),
}
"""Model type to its class and configuration."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert-shared": ("albert", {"num_hidden_groups": 1}),
    "albert-groups-of-two": ("albert", {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 4}),
    "deberta-v2-shared-key": ("deberta-v2", {"share_att_key": True}),
    "deberta-v2-conv": ("deberta-v2", {"share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v2-c2p": ("deberta-v2", {"pos_att_type": ["c2p"]}),
    "deberta-v2-p2c": ("deberta-v2", {"pos_att_type": ["p2c"], "conv_kernel_size": 3}),
    "deberta-v2-narrow": ("deberta-v2", {"embedding_size": HIDDEN // 2, "position_buckets": -1}),
    "deberta-v2-absolute": (
        "deberta-v2",
        {"relative_attention": False, "position_biased_input": True, "pos_att_type": None, "norm_rel_ebd": "none"},
    ),
    "modernbert-no-bias": ("modernbert", dict.fromkeys(_BIASES, False)),
    "vit-oblong-no-bias": ("vit", {"image_size": (8, 12), "patch_size": (4, 2), "qkv_bias": False}),
}
"""Name to model type and what is configured otherwise."""

EAGER_ONLY = ("deberta-v2", "mpnet")
"""As `tiny_families` says."""

EAGER_IN_FLOAT32 = ("modernbert", "vit")
"""As `tiny_families` says."""
