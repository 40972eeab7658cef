"""Encoders: BERT and its kin."""

from __future__ import annotations

from dataclasses import replace

from bplightning.families.rows import AttentionNames, Family, FeedForwardNames, Stack

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
                ),
            ),
            feed_forward=FeedForwardNames(
                up=("intermediate.dense",), down="output.dense", activation="intermediate.intermediate_act_fn"
            ),
        ),
    ),
    residual={
        "embeddings.*_embeddings.weight": 1,
        "*LayerNorm.*": 0,
        "pooler.dense.weight": 1,
        "qa_outputs.weight": 1,
    },
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

ROWS: dict[str, Family] = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
