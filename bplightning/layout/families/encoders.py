"""Encoders: BERT and its relatives, and ViT."""

from __future__ import annotations

from dataclasses import replace

from bplightning.layout.families.position_bias import BiasFromStack, taken_by
from bplightning.layout.families.rows import AttentionNames, ConfigWidths, Family, FeedForwardNames, Stack
from bplightning.layout.families.without_heads import AddsAndNormalizes, ReadsPositions, when_headless

_BERT = Family(
    stacks=(
        Stack(
            layers="encoder.layer",
            attention=(
                AttentionNames(
                    module="attention.self",
                    query="attention.self.query",
                    key="attention.self.key",
                    value="attention.self.value",
                    output="attention.output.dense",
                    adds="attention.output",
                ),
            ),
            feed_forward=FeedForwardNames(
                up=("intermediate.dense",),
                down="output.dense",
                activation="intermediate.intermediate_act_fn",
                adds="output",
            ),
            config=ConfigWidths(units="intermediate_size", layers="num_hidden_layers"),
        ),
    ),
    residual={
        "embeddings.*_embeddings.weight": 1,
        "*LayerNorm.*": 0,
        "pooler.dense.weight": 1,
        "qa_outputs.weight": 1,
        "classifier.dense.weight": 1,  # RoBERTa's and ELECTRA's, for sentences
    },
    unpooled={"classifier.weight": 1},  # for tokens
)

_DISTILBERT = Family(
    stacks=(
        Stack(
            layers="transformer.layer",
            attention=(
                AttentionNames(
                    module="attention",
                    query="attention.q_lin",
                    key="attention.k_lin",
                    value="attention.v_lin",
                    output="attention.out_lin",
                ),
            ),
            feed_forward=FeedForwardNames(up=("ffn.lin1",), down="ffn.lin2", activation="ffn.activation"),
            config=ConfigWidths(units="hidden_dim"),
        ),
    ),
    residual={
        "embeddings.*_embeddings.weight": 1,
        "*LayerNorm.*": 0,
        "*layer_norm.*": 0,
        "pre_classifier.weight": 1,
        "qa_outputs.weight": 1,
    },
)

_ELECTRA = replace(_BERT, residual={**_BERT.residual, "embeddings_project.*": 0})  # only where embeddings are narrower

# A layer, or a group of layers, is run several times; its weights are pruned once.
_ALBERT = Family(
    stacks=(
        Stack(
            layers="encoder.albert_layer_groups.*.albert_layers",
            attention=(
                AttentionNames(
                    module="attention",
                    query="attention.query",
                    key="attention.key",
                    value="attention.value",
                    output="attention.dense",
                ),
            ),
            feed_forward=FeedForwardNames(up=("ffn",), down="ffn_output", activation="activation"),
            config=ConfigWidths(units="intermediate_size"),
        ),
    ),
    residual={
        "encoder.embedding_hidden_mapping_in.*": 0,
        "encoder.*LayerNorm.*": 0,
        "encoder.*layer_norm.*": 0,
        "pooler.weight": 1,
        "qa_outputs.weight": 1,
    },
    resized=when_headless(AddsAndNormalizes),
)

_DEBERTA_V2 = Family(
    stacks=(
        Stack(
            layers="encoder.layer",
            attention=(
                AttentionNames(
                    module="attention.self",
                    query="attention.self.query_proj",
                    key="attention.self.key_proj",
                    value="attention.self.value_proj",
                    output="attention.output.dense",
                    # Only with relative attention, and where query and key do not project positions as well.
                    position_query="attention.self.pos_query_proj",
                    position_key="attention.self.pos_key_proj",
                ),
            ),
            feed_forward=FeedForwardNames(
                up=("intermediate.dense",), down="output.dense", activation="intermediate.intermediate_act_fn"
            ),
            config=ConfigWidths(units="intermediate_size"),
        ),
    ),
    residual={
        "embeddings.*_embeddings.weight": 1,
        "embeddings.embed_proj.weight": 0,  # only where embeddings are narrower
        "encoder.rel_embeddings.weight": 1,
        "encoder.conv.conv.weight": (0, 1),
        "encoder.conv.conv.bias": 0,
        "*LayerNorm.*": 0,
        "pooler.dense.weight": 1,
        "qa_outputs.weight": 1,
    },
    resized=when_headless(ReadsPositions),
)

_MODERNBERT = Family(
    stacks=(
        Stack(
            layers="layers",
            attention=(
                AttentionNames(
                    module="attn",
                    query="attn.Wqkv",
                    key="attn.Wqkv",
                    value="attn.Wqkv",
                    output="attn.Wo",
                    fused=True,
                ),
            ),
            feed_forward=FeedForwardNames(up=("mlp.Wi",), down="mlp.Wo", activation="mlp.act", fused=True),
            config=ConfigWidths(units="intermediate_size"),
        ),
    ),
    residual={
        "embeddings.tok_embeddings.weight": 1,
        "embeddings.norm.*": 0,
        "layers.*_norm.*": 0,
        "final_norm.*": 0,
        "head.dense.weight": 1,
    },
)

_MPNET = Family(
    stacks=(
        Stack(
            layers="encoder.layer",
            attention=(
                AttentionNames(
                    module="attention.attn",
                    query="attention.attn.q",
                    key="attention.attn.k",
                    value="attention.attn.v",
                    output="attention.attn.o",
                    position_bias="encoder.relative_attention_bias",
                ),
            ),
            feed_forward=_BERT.stacks[0].feed_forward,
            config=ConfigWidths(units="intermediate_size"),
        ),
    ),
    residual=_BERT.residual,
    resized=taken_by(BiasFromStack),
)

_VIT = Family(
    stacks=(
        Stack(
            layers="layers",
            attention=(
                AttentionNames(
                    module="attention",
                    query="attention.q_proj",
                    key="attention.k_proj",
                    value="attention.v_proj",
                    output="attention.o_proj",
                ),
            ),
            feed_forward=FeedForwardNames(up=("mlp.fc1",), down="mlp.fc2", activation="mlp.activation_fn"),
            config=ConfigWidths(units="intermediate_size", layers="num_hidden_layers"),
        ),
    ),
    residual={
        "embeddings.patch_embeddings.projection.*": 0,
        "embeddings.*_token": 2,
        "embeddings.position_embeddings": 2,
        "*layernorm*": 0,
        "pooler.dense.weight": 1,
        "classifier.weight": 1,
    },
)

ROWS: dict[str, Family] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "roberta": _BERT,
    "vit": _VIT,
    "xlm-roberta": _BERT,
}
