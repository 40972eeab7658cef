"""Whether an engine can hold what a strategy will make of a model: said before training, with what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from ranked_strategy import Ranked
from tiny_families import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import Target
from bplightning.planning.engines import engine_of
from bplightning.planning.plan import plan
from bplightning.planning.schema import Engine
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.movement import Movement

HEADS_ONLY = {"attention": "head", "feed_forward": "2:4"}
WHOLE = {"attention": "head", "feed_forward": "unit"}


def asked(engine: str, model: Any, strategy: PruningStrategy, **options: Any) -> Engine:
    return engine_of(engine, model, strategy, plan(model, strategy, shapes=((1, 8),)), **options)


def test_heads_of_bert_are_padded_to_the_dense_number() -> None:
    model = tiny("bert")
    said = asked("portable", model, Ranked(WHOLE, 0.5))
    assert said["holds"]
    assert "one number of units for all layers" in said["message"]
    assert "heads are padded to the dense number" in said["message"]
    said = asked("portable", model, Ranked(HEADS_ONLY, 0.5))
    assert not said["holds"]
    assert "has no number for heads" in said["message"]
    assert "What fits: --strategy.granularity.feed_forward unit." in said["message"]


def test_sizes_by_layer_are_padded_unless_the_target_is_uniform() -> None:
    model = tiny("llama", auto=AutoModelForCausalLM)
    uneven, even = (
        asked("portable", model, Movement(target=Target(density=0.5, uniform=uniform), granularity=WHOLE))
        for uniform in (False, True)
    )
    assert "one number of heads and units" in uneven["message"]
    assert "--strategy.target.uniform true keeps them equal" in uneven["message"]
    assert "the target is uniform, so padding them adds nothing" in even["message"]
    blocks = asked("portable", model, Ranked({"attention": "4x4", "feed_forward": "unit"}, 0.5))
    assert "heads go only where all their parts (4x4) do" in blocks["message"]


def test_what_no_configuration_can_say() -> None:
    model = tiny("bert")
    assert "made narrower" in asked("portable", model, CoFi())["message"]
    assert "NoNorm" in asked("vllm", model, Ranked(WHOLE, 0.5), no_norm=True)["message"]


def test_vllm_has_no_encoder_decoders_and_reads_portable_checkpoints() -> None:
    said = asked("vllm", tiny("t5", auto=AutoModelForSeq2SeqLM), Ranked(WHOLE, 0.5))
    assert (said["holds"], "What fits: onnx" in said["message"]) == (False, True)
    assert "not tried" in asked("vllm", tiny("mistral", auto=AutoModelForCausalLM), Ranked(WHOLE, 0.5))["message"]
    said = asked("vllm", tiny("qwen2", auto=AutoModelForCausalLM), Ranked(WHOLE, 0.5))
    assert "may ignore head_dim" in said["message"]


def test_heads_that_look_up_one_table_count_where_any_layer_keeps_them() -> None:
    said = asked("portable", tiny("t5", auto=AutoModelForSeq2SeqLM), Ranked(WHOLE, 0.5))
    assert said["holds"]
    assert "all that any of them kept stay" in said["message"]
    each_its_own = asked("portable", tiny("umt5", auto=AutoModelForSeq2SeqLM), Ranked(WHOLE, 0.5))
    assert "any of them" not in each_its_own["message"]


def test_gguf_says_what_export_would_refuse() -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    strategy = Ranked(WHOLE, 0.5)
    assert "is of type 'bert'" in asked("gguf", tiny("bert"), strategy)["message"]
    model = tiny("llama", auto=AutoModelForCausalLM, attention_bias=False, mlp_bias=False)
    assert asked("gguf", model, strategy)["holds"]
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    said = asked("gguf", model, strategy, tokenizer=PreTrainedTokenizerFast(tokenizer_object=made))
    assert (said["holds"], "the tokenizer of the task splits text by" in said["message"]) == (False, True)


def test_onnx_has_the_widths_of_each_layer() -> None:
    pytest.importorskip("onnxscript", reason="the packages for ONNX are not installed")
    assert asked("onnx", tiny("bert"), Ranked(WHOLE, 0.5))["holds"]
