"""Decoders with a mixture of experts: Mixtral, Qwen-MoE, OLMoE.

The experts of a layer are stacked in 3-D parameters, and a router sends each token to a few of them.
"""

from __future__ import annotations

from dataclasses import replace

from bplightning.layout.families.decoders import LLAMA
from bplightning.layout.families.rows import ConfigWidths, Family, FeedForwardNames

_EXPERTS = FeedForwardNames(
    up=("gate_up_proj",),
    down="down_proj",
    activation="mlp.experts.act_fn",
    experts="mlp.experts",
    router="mlp.gate",
)
_DENSE = LLAMA.stacks[0].feed_forward
_SHARED = FeedForwardNames(
    up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    down="mlp.shared_expert.down_proj",
    activation="mlp.shared_expert.act_fn",
    part="shared",
)
_STACK = replace(
    LLAMA.stacks[0],
    feed_forward=_EXPERTS,
    config=ConfigWidths(heads="num_attention_heads", kv_heads="num_key_value_heads", head_size="head_dim"),
)
_RESIDUAL = {**LLAMA.residual, "*.mlp.gate.weight": 1}

_MIXTRAL = Family(stacks=(_STACK,), residual=_RESIDUAL)

# Some layers may be dense, and in Qwen2-MoE every token also goes through a shared expert with its own gate.
_QWEN = Family(
    stacks=(replace(_STACK, also=(_DENSE, _SHARED)),),
    residual={**_RESIDUAL, "*.mlp.shared_expert_gate.weight": 1},
)

# Its queries and keys are normalized over all heads together, so no head can be removed without changing the others:
# attention is not pruned.
_OLMOE = Family(
    stacks=(replace(_STACK, attention=(), config=ConfigWidths()),),
    residual={
        **_RESIDUAL,
        "*.self_attn.q_proj.weight": 1,
        "*.self_attn.k_proj.weight": 1,
        "*.self_attn.v_proj.weight": 1,
        "*.self_attn.o_proj.weight": 0,
    },
)

ROWS: dict[str, Family] = {
    "mixtral": _MIXTRAL,
    "olmoe": _OLMOE,
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
}
