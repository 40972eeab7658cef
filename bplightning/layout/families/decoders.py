"""Decoder-only models: Llama and its relatives, GPT-2, OPT."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bplightning.layout.families.rows import AttentionNames, ConfigWidths, Family, FeedForwardNames, Stack
from bplightning.layout.instance_mixin import Mixin, mix_in

LLAMA = Family(
    stacks=(
        Stack(
            layers="layers",
            attention=(
                AttentionNames(
                    module="self_attn",
                    query="self_attn.q_proj",
                    key="self_attn.k_proj",
                    value="self_attn.v_proj",
                    output="self_attn.o_proj",
                ),
            ),
            feed_forward=FeedForwardNames(
                up=("mlp.gate_proj", "mlp.up_proj"), down="mlp.down_proj", activation="mlp.act_fn"
            ),
            name="decoder",
            config=ConfigWidths(
                units="intermediate_size",
                heads="num_attention_heads",
                kv_heads="num_key_value_heads",
                head_size="head_dim",
                layers="num_hidden_layers",
            ),
        ),
    ),
    residual={
        "embed_tokens.weight": 1,
        "*layernorm.weight": 0,
        "norm.weight": 0,
        "lm_head.weight": 1,
        "qa_outputs.weight": 1,
        "score.weight": 1,
    },
)


class NoInputs(Mixin):
    """Mixed into the class of a `Conv1D` that has no input features left, which the original cannot reshape."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The bias for each token; the empty weight takes part, so that no parameter is unused."""
        return x @ self.weight + self.bias


def _resized_gpt2(model: nn.Module, group: Any, kept: Tensor) -> None:
    """GPT-2's attention keeps its own split size for the fused projection, and its `Conv1D` needs an input."""
    if hasattr(group, "heads"):
        model.get_submodule(group.module).split_size = len(kept) * group.head_size
    writer = model.get_submodule(group.members[-1].module)
    if isinstance(writer, Conv1D) and len(kept) == 0:
        mix_in(writer, NoInputs)


_GPT2 = Family(
    stacks=(
        Stack(
            layers="h",
            attention=(
                AttentionNames(
                    module="attn",
                    query="attn.c_attn",
                    key="attn.c_attn",
                    value="attn.c_attn",
                    output="attn.c_proj",
                    fused=True,
                    transposed=True,
                ),
            ),
            feed_forward=FeedForwardNames(up=("mlp.c_fc",), down="mlp.c_proj", activation="mlp.act", transposed=True),
            name="decoder",
            config=ConfigWidths(units="n_inner", layers="n_layer"),
        ),
    ),
    residual={
        "wte.weight": 1,
        "wpe.weight": 1,
        "*ln_*": 0,
        "lm_head.weight": 1,
        "qa_outputs.weight": 1,
        "score.weight": 1,
    },
    resized=_resized_gpt2,
)

_OPT = Family(
    stacks=(
        Stack(
            layers="decoder.layers",
            attention=(
                AttentionNames(
                    module="self_attn",
                    query="self_attn.q_proj",
                    key="self_attn.k_proj",
                    value="self_attn.v_proj",
                    output="self_attn.out_proj",
                ),
            ),
            feed_forward=FeedForwardNames(up=("fc1",), down="fc2", activation="activation_fn"),
            name="decoder",
            config=ConfigWidths(units="ffn_dim"),  # some are post-norm, so no layer is left out
        ),
    ),
    residual={
        "decoder.embed_tokens.weight": 1,
        "decoder.embed_positions.weight": 1,
        "decoder.project_in.weight": 0,  # only where embeddings are narrower
        "decoder.project_out.weight": 1,
        "*layer_norm.*": 0,
        "lm_head.weight": 1,
        "qa_outputs.weight": 1,
        "score.weight": 1,
    },
)

ROWS: dict[str, Family] = {
    "gemma": LLAMA,
    "gpt2": _GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "opt": _OPT,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}
