"""GGUF files, read back with the package gguf: widths by layer, numbers and tokens. llama.cpp itself reads them in
benchmarks/engines/llama_cpp.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_parts import keep_only
from tiny_families import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bplightning import PrunableLayout, UserError, compact, save_compact
from bplightning.exporting.export import export_model

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

SIZES = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "attention_bias": False, "mlp_bias": False}


def uneven(**changes: Any) -> PreTrainedModel:
    """A compact Llama: layer 0 has no heads, layer 1 no units, layer 2 half of its heads and some units."""
    model = tiny("llama", auto=AutoModelForCausalLM, **(SIZES | changes))
    layout = PrunableLayout.of(model)
    for group, kept in zip(layout.attention, ([], [0, 1], [1]), strict=True):
        keep_only(model, group, kept)
    for group, kept in zip(layout.feed_forward, (range(7), [], range(3)), strict=True):
        keep_only(model, group, kept)
    smaller: PreTrainedModel = compact(model)  # type: ignore[assignment]
    return smaller


def byte_level() -> PreTrainedTokenizerFast:
    words = ["<s>", "<pad>", *"abcdefgh", "ab", "abc"]
    made = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("a", "b"), ("ab", "c")]))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", pad_token="<pad>")


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Fields, tensors in float32, and the type of each."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    return fields, tensors, {each.name: each.tensor_type.name for each in reader.tensors}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("gguf") / "compact"
    model = uneven()
    save_compact(model, folder, byte_level())
    return folder, model


def rotated_in_pairs(weight_OI: Tensor, size: int) -> Tensor:
    """Row by row: of each head the dimensions that transformers rotates together, d and d + D/2, side by side."""
    pairs = [(d, d + size // 2) for d in range(size // 2)]
    rows = [head + d for head in range(0, len(weight_OI), size) for pair in pairs for d in pair]
    return weight_OI[rows]


def test_widths_are_by_layer_and_numbers_are_the_models(saved: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, model = saved
    (file,) = export_model(folder, tmp_path / "out", format="gguf").files
    fields, tensors, types = read(file)
    assert fields["general.architecture"] == "deci"
    # Two query heads for each key/value head; a first layer without heads has one of zeros, one without units a unit.
    assert fields["deci.attention.head_count"] == [1, 4, 2]
    assert fields["deci.attention.head_count_kv"] == [1, 2, 1]
    assert fields["deci.feed_forward_length"] == [7, 1, 3]
    assert (fields["deci.attention.key_length"], fields["deci.rope.dimension_count"]) == (16, 16)
    assert set(types.values()) == {"F32"}
    layout, norms = PrunableLayout.of(model), dict(model.named_parameters())
    for index in (1, 2):
        group = layout.attention[index]
        for name, member in (("attn_q", group.query), ("attn_k", group.key)):
            right = rotated_in_pairs(member.weight(model), 16).detach().numpy()
            np.testing.assert_array_equal(tensors[f"blk.{index}.{name}.weight"], right)
        for name, member in (("attn_v", group.value), ("attn_output", group.output)):
            right = member.weight(model).detach().numpy()
            np.testing.assert_array_equal(tensors[f"blk.{index}.{name}.weight"], right)
        right = norms[f"model.layers.{index}.input_layernorm.weight"].detach().numpy()
        np.testing.assert_array_equal(tensors[f"blk.{index}.attn_norm.weight"], right)
    for name, member in zip(("ffn_gate", "ffn_up", "ffn_down"), layout.feed_forward[0].members, strict=True):
        np.testing.assert_array_equal(tensors[f"blk.0.{name}.weight"], member.weight(model).detach().numpy())
    assert not tensors["blk.0.attn_v.weight"].any()
    assert not tensors["blk.1.ffn_down.weight"].any()
    embeddings: Any = model.get_input_embeddings()
    np.testing.assert_array_equal(tensors["token_embd.weight"], embeddings.weight.detach().numpy())
    assert "output.weight" in tensors


def test_the_tokenizer_is_in_the_file(saved: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    fields, *_ = read(export_model(saved[0], tmp_path / "out", format="gguf").files[0])
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    tokens = fields["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[:3], tokens[10:12]) == (60, ["<s>", "<pad>", "a"], ["ab", "abc"])
    assert fields["tokenizer.ggml.token_type"][:3] == [3, 3, 1]  # control, control, normal
    assert fields["tokenizer.ggml.token_type"][-1] == 5  # a row of the embeddings that no token has
    assert fields["tokenizer.ggml.merges"] == ["a b", "ab c"]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.add_bos_token"]) == (0, False)


def test_types_of_weights(saved: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, model = saved
    _, halves, types = read(export_model(folder, tmp_path / "half", format="gguf", dtype="float16").files[0])
    assert (types["blk.2.attn_q.weight"], types["blk.2.attn_norm.weight"]) == ("F16", "F32")
    fields, small, types = read(export_model(folder, tmp_path / "q8", format="gguf", quantize="q8_0").files[0])
    assert types.pop("blk.0.attn_output.weight") == "F16"  # 16 columns, which are no block
    assert {kind for name, kind in types.items() if not name.endswith("norm.weight")} == {"Q8_0"}
    assert fields["deci.feed_forward_length"] == [32, 32, 32]  # whole blocks, filled with zeros
    group = PrunableLayout.of(model).feed_forward[0]
    right = group.down.weight(model).detach().numpy()
    np.testing.assert_allclose(small["blk.0.ffn_down.weight"][:, :7], right, atol=np.abs(right).max() / 100)
    assert not small["blk.0.ffn_down.weight"][:, 7:].any()
    np.testing.assert_allclose(halves["blk.0.ffn_down.weight"], right, rtol=1e-3, atol=1e-4)


def test_scaled_frequencies_are_written(tmp_path: Path) -> None:
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**scaled, "original_max_position_embeddings": 16, "rope_theta": 100.0}
    model = tiny("llama", auto=AutoModelForCausalLM, **SIZES, rope_parameters=rope)
    model.save_pretrained(tmp_path / "model")
    fields, tensors, _ = read(export_model(tmp_path / "model", tmp_path / "out", format="gguf").files[0])
    assert fields["tokenizer.ggml.model"] == "none"  # the folder has none
    plain = 100.0 ** -(np.arange(8) / 8)
    right: Any = model.model.rotary_emb.inv_freq  # type: ignore[union-attr]
    np.testing.assert_allclose(plain / tensors["rope_freqs.weight"], right.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("llama", {"auto": None}, "is a LlamaForQuestionAnswering, whose head it lacks"),
        ("llama", {"attention_bias": True}, r"has biases, such as that of .*q_proj.*compact --portable"),
        ("qwen3", {}, "is of type 'qwen3': llama, mistral, qwen2 fit"),
        ("mistral", {"sliding_window": 8}, "attends to a window of 8 tokens"),
        ("llama", {"hidden_act": "gelu"}, "has the activation 'gelu'"),
    ],
)
def test_what_it_cannot_hold_is_refused(model_type: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = {"auto": AutoModelForCausalLM, "attention_bias": False, "mlp_bias": False} | options
    model = tiny(model_type, **{name: value for name, value in settings.items() if value is not None})
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        export_model(tmp_path / "model", tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_name_in_llama_cpp_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny("llama", auto=AutoModelForCausalLM, **SIZES)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"splits text by \['Whitespace'\], for which no name of llama\.cpp is known"):
        export_model(tmp_path / "model", tmp_path / "out", format="gguf")
    with pytest.raises(UserError, match="quantize q8_0 is only for gguf"):
        export_model(tmp_path / "model", tmp_path / "out", quantize="q8_0")


def test_tokenizers_that_would_give_other_tokens_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([f"more{index}" for index in range(60)])
    model = tiny("llama", auto=AutoModelForCausalLM, **SIZES)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"has 72 tokens, and the model embeddings for 60: resize"):
        export_model(tmp_path / "model", tmp_path / "out", format="gguf")
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(True)
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="puts a space first"):
        export_model(tmp_path / "model", tmp_path / "out", format="gguf")
