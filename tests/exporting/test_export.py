"""Exported models: ONNX and torch.export files compute what torch does, at any size, without this project."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from tiny_families import VOCABULARY, padded_inputs, tiny, zero_randomly
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from bplightning.benchmarking.backends import generate
from bplightning.cli import main
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.errors import UserError
from bplightning.exporting import export as exporting
from bplightning.exporting import files, variants
from bplightning.exporting.check import LIMITS, largest_difference, text_inputs
from bplightning.exporting.companions import copy_companions
from bplightning.exporting.export import Exported, export_model
from bplightning.exporting.files import Session, onnx_calls, write_onnx
from bplightning.exporting.graphs import STEPS, Call, Parts, parts_of
from bplightning.exporting.merged import merge_files, merged_calls
from bplightning.exporting.variants import export_onnx, exported_parts
from bplightning.layout.prunable_layout import PrunableLayout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_without_torch.py"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compact BERT that classifies, the layers of which have different numbers of heads, one none."""
    return saved(small("bert", AutoModelForSequenceClassification), tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def exported(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """It as ONNX."""
    out = tmp_path_factory.mktemp("exported") / "onnx"
    return out, export_model(classifier, out)


FEW_LAYERS = {
    "gpt2": {"n_layer": 2},
    **{kind: {"num_layers": 2, "num_decoder_layers": 2} for kind in ("t5", "umt5")},
    **{kind: {"encoder_layers": 2, "decoder_layers": 2} for kind in ("bart", "marian", "mbart", "pegasus")},
}
"""Two, where they are not called `num_hidden_layers`: what is exported costs seconds a layer."""


def small(model_type: str, auto: Any, *, seed: int = 11, **config: Any) -> PreTrainedModel:
    """A compact model of two layers, which have different numbers of heads, the second none."""
    model = tiny(model_type, auto=auto, **FEW_LAYERS.get(model_type, {"num_hidden_layers": 2}), **config)
    zero_randomly(model, "heads", seed=seed)
    with torch.no_grad():
        for group in PrunableLayout.of(model).attention:
            if ".1." in f".{group.name.replace('-', '.')}.":
                group.output.weight(model).zero_()
    made = compact(model).eval()
    assert any(group.heads == 0 for group in PrunableLayout.of(made).attention)
    return made


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """Its folder, with a tokenizer of which each token is a word, and a task."""
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "task.json").write_text('{"version": 1, "task": "classification", "settings": {}}')
    return folder


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(file: Path, **inputs: Tensor) -> dict[str, Tensor]:
    """What a file computes; what it does not ask for is not given."""
    opened = session(file)
    fed = {each.name: inputs[each.name].numpy() for each in opened.get_inputs()}
    names = [each.name for each in opened.get_outputs()]
    return {name: torch.from_numpy(array) for name, array in zip(names, opened.run(None, fed), strict=True)}


def weights_of(file: Path) -> int:
    """Bytes of all tensors that a file holds."""
    return sum(len(onnx.numpy_helper.to_array(each).tobytes()) for each in onnx.load(file).graph.initializer)


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 9), (5, 23)])
def test_any_batch_and_length(exported: tuple[Path, Exported], classifier: Path, batch: int, length: int) -> None:
    inputs = padded_inputs("right", batch=batch, length=length)
    inputs["token_type_ids"] = (inputs["input_ids"] % 2) * inputs["attention_mask"]
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(classifier)(**inputs).logits
    got = run(exported[0] / "onnx" / "model.onnx", **inputs)["logits"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_axes_are_named_and_nothing_is_said_of_what_is_unknown(exported: tuple[Path, Exported]) -> None:
    graph = onnx.load(exported[0] / "onnx" / "model.onnx").graph
    names = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output, *graph.value_info]
    }
    assert names["input_ids"] == names["token_type_ids"] == ["batch_size", "sequence_length"]
    assert names["logits"] == ["batch_size", 2]
    # ONNX Runtime takes equal names for equal sizes, and reuses memory accordingly.
    assert {dim for dims in names.values() for dim in dims if isinstance(dim, str)} == {"batch_size", "sequence_length"}


def test_the_folder_has_what_its_users_need_and_says_the_opset(exported: tuple[Path, Exported]) -> None:
    out, result = exported
    there = {path.name for path in out.iterdir()}
    assert there == {"onnx", "config.json", "task.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert result.files == (out / "onnx" / "model.onnx",)
    assert [(each.domain, each.version) for each in onnx.load(result.files[0]).opset_import] == [("", 20)]
    assert not list(out.parent.glob(".*"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Sequence[Path]]:
    """A Llama that never ends a text, and its file."""
    model = small("llama", AutoModelForCausalLM, seed=10, eos_token_id=None)
    return model, export_onnx(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Sequence[Path]]:
    """A T5 that never ends a text, and its files."""
    model = small("t5", AutoModelForSeq2SeqLM, eos_token_id=None)
    return model, export_onnx(model, tmp_path_factory.mktemp("t5"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("made", ["decoder", "encoder_decoder"])
def test_the_files_write_what_torch_writes(made: str, request: pytest.FixtureRequest) -> None:
    require_the_same_text(*request.getfixturevalue(made))


def test_the_files_of_experts_write_what_torch_writes(tmp_path: Path) -> None:
    model = small("mixtral", AutoModelForCausalLM)
    require_the_same_text(model, export_onnx(model, tmp_path))


def require_the_same_text(model: PreTrainedModel, files: Sequence[Path]) -> None:
    """Six tokens by the files, and by torch."""
    model, given = copy.deepcopy(model), model.generation_config
    model.generation_config = GenerationConfig(
        decoder_start_token_id=given.decoder_start_token_id, pad_token_id=given.pad_token_id or 0
    )
    inputs = padded_inputs("left", batch=3, length=9)
    calls = onnx_calls(files)
    written = exported_parts(model).generate(calls, inputs, tokens=6)
    assert torch.equal(written, generate(model, inputs, tokens=6)[:, -6:])


def test_opset_as_asked(tmp_path: Path) -> None:
    model = tiny("vit", num_hidden_layers=1)
    (file,) = export_onnx(model, tmp_path, opset=18)
    assert [(each.domain, each.version) for each in onnx.load(file).opset_import] == [("", 18)]
    images = torch.randn(2, 2, 12, 12)
    torch.testing.assert_close(run(file, pixel_values=images)["logits"], model(pixel_values=images).logits)


def test_int8_is_smaller_and_its_difference_is_said(
    classifier: Path, exported: tuple[Path, Exported], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        main(["export", str(classifier), str(tmp_path / "int8"), "--quantize", "int8"])
    said = caplog.text
    assert "ONNX, opset 20" in said
    assert float(re.search(r"int8: .* from torch (\S+) of the largest output \(measure", said)[1]) > 0  # type: ignore[index]
    file = tmp_path / "int8" / "onnx" / "model_quantized.onnx"
    assert file.stat().st_size < 0.9 * (exported[0] / "onnx" / "model.onnx").stat().st_size
    kinds = {each.data_type for each in onnx.load(file).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    inputs = padded_inputs("right")
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    full, int8 = (run(path, **inputs)["logits"] for path in (exported[0] / "onnx" / "model.onnx", file))
    assert 0 < (full - int8).abs().max() < full.abs().max()


@pytest.mark.parametrize(
    ("family", "auto"), [("bert", AutoModelForSequenceClassification), ("gpt2", AutoModelForCausalLM)]
)
def test_int8_of_layers_that_lost_everything(tmp_path: Path, family: str, auto: Any) -> None:
    """Heads of one layer, units of another; a decoder with its cache."""
    whole = tiny(family, auto=auto, num_hidden_layers=3).eval()
    layout = PrunableLayout.of(whole)
    with torch.no_grad():
        for group in (layout.attention[0], layout.feed_forward[1], layout.attention[2], layout.feed_forward[2]):
            group.members[-1].weight(whole).zero_()
    small: Any = compact(whole).eval()
    (file,) = export_onnx(small, tmp_path, int8=True, with_past=True)
    assert file.stat().st_size > 0


def test_only_the_sizes_that_were_asked_for(classifier: Path, tmp_path: Path) -> None:
    result = export_model(classifier, tmp_path / "fixed", batch=2, length=11)
    opened = session(result.files[0])
    assert {tuple(each.shape) for each in opened.get_inputs()} == {(2, 11)}
    inputs = padded_inputs("right", batch=2, length=11)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(classifier)(**inputs).logits
    torch.testing.assert_close(run(result.files[0], **inputs)["logits"], expected, rtol=1e-4, atol=1e-5)


def test_other_programs_find_an_ordinary_configuration(exported: tuple[Path, Exported], classifier: Path) -> None:
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (classifier, exported[0]))
    assert {"compaction", "quantization_config"} <= set(before)
    assert set(after) == set(before) - {"compaction", "quantization_config"} | {"id2label", "label2id"}
    assert after["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert after["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}


def test_large_weights_lie_where_readers_look_for_them(
    exported: tuple[Path, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ONE_FILE", 0)
    file = write_onnx(onnx_ir.load(exported[1].files[0]), tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx_data"}
    Session(file)


def test_modules_of_an_embedding_model_come_along(tmp_path: Path) -> None:
    model, out = tiny("bert"), tmp_path / "out"
    model.save_pretrained(tmp_path / "model")
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).touch()
    out.mkdir()
    copy_companions(tmp_path / "model", out, model.config)
    assert {path.name for path in out.rglob("*")} >= {"1_Pooling", "2_Dense", "model.safetensors"}


def test_images_have_no_length(tmp_path: Path) -> None:
    tiny("vit", num_hidden_layers=1).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="length is 8, and a ViTForImageClassification reads images"):
        export_model(tmp_path / "model", tmp_path / "out", length=8)


def test_float16(tmp_path: Path) -> None:
    tiny("vit", num_hidden_layers=1).save_pretrained(tmp_path / "model")
    result = export_model(tmp_path / "model", tmp_path / "half", dtype="float16")
    full, half = result.variants
    assert full.difference < LIMITS[torch.float32] == full.limit
    assert 1e-4 < half.difference < LIMITS[torch.float16] == half.limit
    inside = tmp_path / "half" / "onnx"
    assert {file.name for file in inside.iterdir()} == {"model.onnx", "model_fp16.onnx"}
    opened = session(inside / "model_fp16.onnx")  # numbers come and go in float32, as readers expect
    assert {each.type for each in [*opened.get_inputs(), *opened.get_outputs()]} == {"tensor(float)"}
    weights = onnx.load(inside / "model_fp16.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT16 in {each.data_type for each in weights if np.prod(each.dims) > 100}


def test_torch_export_reloads_at_any_size(classifier: Path, tmp_path: Path) -> None:
    result = export_model(classifier, tmp_path / "out", format="torch-export")
    assert result.files == (tmp_path / "out" / "model.pt2",)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    program = torch.export.load(result.files[0]).module()
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    for batch, length in ((1, 1), (4, 30)):
        inputs = padded_inputs("right", batch=batch, length=length)
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with torch.no_grad():
            torch.testing.assert_close(program(**inputs)["logits"], model(**inputs).logits)


# -- generating with a cache -------------------------------------------------------------------------------------------


def test_decoder_generates_as_torch_does(decoder: tuple[PreTrainedModel, Sequence[Path]]) -> None:
    model, (file,) = decoder
    prompt = padded_inputs("left", batch=3, length=7)
    opened = session(file)
    past = {
        each.name: np.zeros(
            [3 if dim == "batch_size" else 0 if isinstance(dim, str) else dim for dim in each.shape], "float32"
        )
        for each in opened.get_inputs()
        if each.name.startswith("past_key_values")
    }
    names = [each.name for each in opened.get_outputs()]
    ids, mask = prompt["input_ids"].numpy(), prompt["attention_mask"].numpy()
    fresh, tokens = ids, ids
    for _ in range(6):
        positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -fresh.shape[1] :]
        fed = {"input_ids": fresh, "attention_mask": mask, "position_ids": positions, **past}
        outputs = dict(zip(names, opened.run(None, fed), strict=True))
        past = {name.replace("present", "past_key_values"): outputs[name] for name in names if name != "logits"}
        fresh = outputs["logits"][:, -1:].argmax(-1)
        tokens = np.concatenate([tokens, fresh], 1)
        mask = np.concatenate([mask, np.ones_like(fresh)], 1)
    expected = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert tokens.tolist() == expected.tolist()


def test_encoder_decoder_generates_as_torch_does(
    encoder_decoder: tuple[PreTrainedModel, Sequence[Path]],
) -> None:
    model, files = encoder_decoder
    assert [file.name for file in files] == ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]
    encoder, start, step = files
    prompt = padded_inputs("right", batch=3, length=7)
    states = run(encoder, **prompt)["last_hidden_state"]
    mask = {"encoder_attention_mask": prompt["attention_mask"]}
    tokens = torch.full((3, 1), model.config.decoder_start_token_id)
    outputs = run(start, input_ids=tokens, encoder_hidden_states=states, **mask)
    past: dict[str, Tensor] = {}
    for _ in range(5):
        past |= {name.replace("present", "past_key_values"): outputs[name] for name in outputs if name != "logits"}
        fresh = outputs["logits"][:, -1:].argmax(-1)
        tokens = torch.cat([tokens, fresh], 1)
        outputs = run(step, input_ids=fresh, **mask, **past)
    expected = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert tokens.tolist() == expected.tolist()


def test_one_file_has_both_kinds_of_steps_and_one_copy_of_the_weights(
    encoder_decoder: tuple[PreTrainedModel, Sequence[Path]], tmp_path: Path
) -> None:
    model, (encoder, first, later) = encoder_decoder
    merged = write_onnx(merge_files(first, later), tmp_path / "merged.onnx")
    onnx.checker.check_model(merged)
    calls = {STEPS[0]: onnx_calls([encoder])[STEPS[0]], **merged_calls(Session(merged))}
    parts = exported_parts(model)
    inputs = comparison_inputs(model, rows=3, length=7)
    assert largest_difference(model, parts, calls, inputs) < 1e-5
    prompt = padded_inputs("right", batch=3, length=7)
    expected = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert parts.generate(calls, prompt, tokens=5).tolist() == expected[:, 1:].tolist()
    assert weights_of(merged) < 1.1 * weights_of(first)


def test_without_past_a_decoder_is_one_forward_pass(tmp_path: Path) -> None:
    model = small("gpt2", AutoModelForCausalLM)
    (file,) = export_onnx(model, tmp_path, with_past=False)
    assert [each.name for each in session(file).get_inputs()] == ["input_ids", "attention_mask"]
    inputs = padded_inputs("right", batch=2, length=4)
    with torch.no_grad():
        expected = model(**inputs).logits
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(run(file, **inputs)["logits"][kept], expected[kept], rtol=1e-4, atol=1e-5)


def eager(parts: Parts) -> dict[str, Call]:
    """The graphs computed by torch, as they are before they are exported."""

    def call(module: Any) -> Call:
        return lambda inputs: module(**inputs)

    return {graph.name: call(graph.module) for graph in parts.graphs}


KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "bert-causal": ("bert", AutoModelForCausalLM, {"is_decoder": True}),
    "roberta-causal": ("roberta", AutoModelForCausalLM, {"is_decoder": True}),
    "bart-causal": ("bart", AutoModelForCausalLM, {"is_decoder": True}),
    **{kind: (kind, AutoModelForCausalLM, {}) for kind in ("gemma", "gpt2", "llama", "mistral", "opt", "qwen3")},
    **{kind: (kind, AutoModelForSeq2SeqLM, {}) for kind in ("bart", "marian", "pegasus", "t5", "umt5")},
    "t5-classifies": ("t5", AutoModelForSequenceClassification, {}),
    "bart-classifies": ("bart", AutoModelForSequenceClassification, {}),
    "mbart-classifies": ("mbart", AutoModelForSequenceClassification, {}),
    "t5-answers": ("t5", AutoModelForQuestionAnswering, {}),
    "llama-classifies": ("llama", AutoModelForSequenceClassification, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_graphs_together_compute_the_model(kind: str) -> None:
    model_type, auto, config = KINDS[kind]
    model = small(model_type, auto, **config)
    parts = parts_of(model, comparison_inputs(model, rows=2, length=6))
    assert (len(parts.graphs) == 3) == (auto is AutoModelForSeq2SeqLM)
    for rows, length in ((1, 5), (3, 17)):
        inputs = comparison_inputs(model, rows=rows, length=length)
        assert largest_difference(model, parts, eager(parts), inputs) < 1e-5


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "least"),
    [(lambda logits: logits + 0.1, 0.01), (lambda logits: logits * float("nan"), float("inf"))],
    ids=["off", "nan"],
)
def test_a_difference_is_found(spoil: Callable[[Tensor], Tensor], least: float) -> None:
    model = small("bert", AutoModelForSequenceClassification)
    inputs = comparison_inputs(model, rows=3, length=7)
    parts = parts_of(model, inputs)
    calls: dict[str, Call] = {"model": lambda given: {"logits": spoil(model(**given).logits)}}
    assert largest_difference(model, parts, calls, inputs) >= least


def test_the_check_tells_a_first_text_from_a_second(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    for inputs in (comparison_inputs(model, rows=2, length=7), text_inputs(model, classifier)):
        assert inputs is not None
        calls: dict[str, Call] = {"model": lambda given: {"logits": model(given["input_ids"]).logits}}
        parts = parts_of(model, inputs)
        assert largest_difference(model, parts, calls, inputs) > LIMITS[torch.float32]


def test_a_loaded_model_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, torch.float32, 1e-12)
    with pytest.raises(UserError, match="the export of a BertForSequenceClassification differs from torch"):
        export_onnx(small("bert", AutoModelForSequenceClassification), tmp_path)


def test_a_model_in_half_precision_is_checked_against_what_is_exported(tmp_path: Path) -> None:
    model = small("bert", AutoModelForSequenceClassification)
    (file,) = export_onnx(model.bfloat16(), tmp_path, dtype=torch.float32)
    assert {each.type for each in session(file).get_outputs()} == {"tensor(float)"}
    with pytest.raises(UserError, match=r"the model is in torch\.bfloat16, but ONNX files are in float32 or float16"):
        export_onnx(model, tmp_path)


def test_int8_that_gives_no_numbers_is_refused(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(file: Path, quantized: Path) -> Path:
        """Stands for a quantizer whose scales overflow."""
        model = onnx.load(file)
        (bias,) = (each for each in model.graph.initializer if each.name.endswith("classifier.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full_like(onnx.numpy_helper.to_array(bias), np.nan), bias.name))
        onnx.save(model, quantized)
        return quantized

    monkeypatch.setattr(variants, "quantize_onnx", overflowing)
    with pytest.raises(UserError, match=r"int8 makes outputs of .* NaN or infinite"):
        export_model(classifier, tmp_path / "out", quantize="int8")
    assert not list(tmp_path.iterdir())


def test_a_mismatch_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("vit", num_hidden_layers=1).save_pretrained(tmp_path / "model")
    monkeypatch.setitem(LIMITS, torch.float32, 1e-12)
    with pytest.raises(UserError, match=r"differs from torch by \S+e-0\d of the largest output, more than the 1e-12"):
        export_model(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite'; it must be one of onnx, torch-export."),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'; it must be one of float32, float16."),
        ({"quantize": "int4"}, "quantize is 'int4'; it must be one of int8."),
        ({"opset": 0}, "opset is 0; it must be from 18 to 25"),
        ({"opset": 17}, "opset is 17; it must be from 18 to 25"),
        ({"quantize": "q8_0", "format": "gguf", "dtype": "float16"}, "a GGUF file has one precision"),
        ({"quantize": "int8", "format": "torch-export"}, "quantize int8 is only for onnx"),
        ({"opset": 20, "format": "torch-export"}, "opset, batch and length are only for onnx"),
        ({"batch": 1, "format": "torch-export"}, "opset, batch and length are only for onnx"),
        ({"batch": 0}, "batch is 0; it must be 1 or more, or left out for any size"),
        ({"length": 1000}, "length is 1000, and the model has 40 positions: give at most these"),
    ],
)
def test_options_that_do_not_go(classifier: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_model(classifier, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: give a model's folder"):
        export_model(tmp_path / "none", tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(UserError, match="has no compact model yet"):
        export_model(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nosuch"}, "cannot be loaded"),
        ({"architectures": ["NoSuchModel"]}, "of class 'NoSuchModel' by its config.json, which transformers does not"),
    ],
)
def test_a_family_that_transformers_does_not_have(
    classifier: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    content = json.loads((classifier / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=message):
        export_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_below_a_file_is_refused_before_the_model_is_read(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_load", lambda path: pytest.fail("the model is read"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out' cannot be written, as '.*file' is a file: name another folder"):
        export_model(classifier, tmp_path / "file" / "out")


def test_files_of_the_user_stay(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder: name another one"):
        export_model(classifier, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_library(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"the format onnx needs {name}: pip install onnx onnxruntime onnxscript"):
        export_model(classifier, tmp_path / "out")


def test_what_stops_an_exporter_is_one_line(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator.\nA page of advice")

    monkeypatch.setattr(variants, "save_onnx", stops)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(classifier), str(tmp_path / "out")])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "BertForSequenceClassification cannot be exported to onnx" in line
    assert "(RuntimeError: no such operator): use another format" in line
    assert not list(tmp_path.iterdir())


# -- without torch -----------------------------------------------------------------------------------------------------


def ask(folder: Path, *texts: str) -> dict[str, Any]:
    """What the example answers where torch, transformers and this project cannot be imported."""
    blocked = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'bplightning')));"
    code = f"{blocked} sys.argv = ['example', *sys.argv[1:]]; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *texts],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(done.stdout))


def test_the_example_classifies_without_torch(exported: tuple[Path, Exported], classifier: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    for texts in (["w1 w2 w3"], ["w7 w9", "w11 w4 w30"]):
        with torch.no_grad():
            probabilities = model(**tokenizer(*texts, return_tensors="pt")).logits[0].softmax(-1)
        answer = ask(exported[0], *texts)
        assert answer["label"] == model.config.id2label[int(probabilities.argmax())]
        assert answer["score"] == pytest.approx(float(probabilities.max()), abs=2e-4)


def test_the_example_answers_questions_without_torch(tmp_path: Path) -> None:
    folder = saved(small("bert", AutoModelForQuestionAnswering), tmp_path / "model")
    export_model(folder, tmp_path / "out")
    question, passage = "w1 w2", "w3 w4  w5 w6 w7"
    encoded = BertTokenizer.from_pretrained(folder)(question, passage, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = AutoModelForQuestionAnswering.from_pretrained(folder)(**encoded)
    # [CLS] w1 w2 [SEP] w3 ... w7 [SEP]
    spans = {
        (a, b): float(outputs.start_logits[0, a] + outputs.end_logits[0, b]) for a in range(4, 9) for b in range(a, 9)
    }
    first, last = max(spans, key=lambda span: spans[span])
    answer = ask(tmp_path / "out", question, passage)
    assert answer["answer"] == passage[offsets[first][0] : offsets[last][1]]
    assert answer["score"] == pytest.approx(spans[first, last], abs=2e-4)
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        ask(tmp_path / "out", question)
    assert stopped.value.stderr == "the model answers questions: give a question and a passage.\n"
