"""Encoder-decoder models: T5 and its relatives, BART and its relatives."""

from __future__ import annotations

from dataclasses import replace

from bplightning.layout.families.position_bias import BiasFromFirstLayer, taken_by
from bplightning.layout.families.rows import AttentionNames, ConfigWidths, Family, FeedForwardNames, Stack


def _t5_attention(module: str, *, kind: str, position_bias: str | None = None) -> AttentionNames:
    return AttentionNames(
        module=module,
        query=f"{module}.q",
        key=f"{module}.k",
        value=f"{module}.v",
        output=f"{module}.o",
        kind=kind,
        position_bias=position_bias,
    )


def _t5_stack(name: str, *, table_of: str = "0") -> Stack:
    """One stack; `table_of` is the layer that owns the table of position biases."""
    table = f"{name}.block.{table_of}.layer.0.SelfAttention.relative_attention_bias"
    own = _t5_attention("layer.0.SelfAttention", kind="self", position_bias=table)
    cross = _t5_attention("layer.1.EncDecAttention", kind="cross")
    inner = f"layer.{1 if name == 'encoder' else 2}.DenseReluDense"
    return Stack(
        layers=f"{name}.block",
        attention=(own,) if name == "encoder" else (own, cross),
        feed_forward=FeedForwardNames(
            up=(f"{inner}.wi", f"{inner}.wi_0", f"{inner}.wi_1"),  # the first, or in gated layers the other two
            down=f"{inner}.wo",
            activation=f"{inner}.act",
        ),
        name=name,
        config=ConfigWidths(
            units="d_ff",
            heads="num_heads",
            head_size="d_kv",
            layers="num_layers" if name == "encoder" else "num_decoder_layers",
        ),
    )


_T5 = Family(
    stacks=(_t5_stack("encoder"), _t5_stack("decoder")),
    residual={
        "shared.weight": 1,
        "*embed_tokens.weight": 1,
        "*layer_norm.weight": 0,
        "lm_head.weight": 1,
        "qa_outputs.weight": 1,
        "classifier.weight": 1,
        "classification_head.dense.weight": 1,
    },
    resized=taken_by(BiasFromFirstLayer),
)

# Every layer has its own table, which is sliced with the layer's heads.
_UMT5 = replace(
    _T5,
    stacks=tuple(_t5_stack(name, table_of="{layer}") for name in ("encoder", "decoder")),
    resized=None,
)


def _bart_attention(module: str, *, kind: str) -> AttentionNames:
    return AttentionNames(
        module=module,
        query=f"{module}.q_proj",
        key=f"{module}.k_proj",
        value=f"{module}.v_proj",
        output=f"{module}.out_proj",
        kind=kind,
    )


def _bart_stack(name: str) -> Stack:
    own, cross = _bart_attention("self_attn", kind="self"), _bart_attention("encoder_attn", kind="cross")
    return Stack(
        layers=f"{name}.layers",
        attention=(own,) if name == "encoder" else (own, cross),
        feed_forward=FeedForwardNames(up=("fc1",), down="fc2", activation="activation_fn"),
        name=name,
        heads=f"{name}_attention_heads",
        config=ConfigWidths(units=f"{name}_ffn_dim"),  # most are post-norm, so no layer is left out
    )


_BART = Family(
    stacks=(_bart_stack("encoder"), _bart_stack("decoder")),
    residual={
        "shared.weight": 1,
        "*embed_tokens.weight": 1,
        "*embed_positions.weight": 1,
        "*layer_norm.*": 0,
        "*layernorm_embedding.*": 0,
        "lm_head.weight": 1,
        "qa_outputs.weight": 1,
        "classification_head.dense.weight": 1,
    },
)

ROWS: dict[str, Family] = {
    "bart": _BART,
    "blenderbot": _BART,
    "blenderbot-small": _BART,
    "marian": _BART,
    "mbart": _BART,
    "mt5": _T5,
    "pegasus": _BART,
    "plbart": _BART,
    "t5": _T5,
    "umt5": _UMT5,
}
