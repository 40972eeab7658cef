"""The compact model in 8 bits, beside the others in a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import padded_inputs
from tiny_task import TinyTask, trainer

from bplightning.compaction.exact_compaction import compact
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.exporting.static_quantization import StaticQuantization
from bplightning.exporting.variants import export_onnx
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.reporting.table import notes
from bplightning.stages import pipeline, quantization
from bplightning.stages.quantization import Gate, OnnxModel, require_quantizable
from bplightning.stages.request import RunRequest
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_a_file_answers_like_the_model_it_was_made_from(tmp_path: Path) -> None:
    model = TinyTask(tmp_path).build_model().eval()
    (file,) = export_onnx(model, tmp_path)
    inputs = padded_inputs("right")
    expected, got = model(**inputs), OnnxModel(file, model.config)(**inputs, labels=torch.zeros(1))
    torch.testing.assert_close(got.start_logits, expected.start_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["end_logits"], expected.end_logits, rtol=1e-4, atol=1e-5)


def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times be measured in two rounds."""
    latency = measure.latency
    settings: Any = {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 2}
    monkeypatch.setattr(measure, "latency", lambda *args, **call: latency(*args, **(call | settings)))


def test_a_run_reports_scores_size_and_speed_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brief(monkeypatch)
    task = TinyTask(tmp_path, max_position_embeddings=128)
    dense = tmp_path / "dense"
    task.build_model().save_pretrained(dense)
    report = pipeline.fit(
        trainer(tmp_path, max_steps=8),
        PruningModule(task, Hybrid(window=PruningWindow(initial_warmup=0, final_warmup=0)), learning_rate=1e-3),
        RunRequest(baseline=str(dense), quantize="int8"),
    )
    assert report is not None
    found = report["quantized"]
    assert found is not None
    assert found["metrics"].keys() == (report["metrics"]["compact"] or {}).keys()
    assert found["metrics"]["accuracy"] == pytest.approx(report["metrics"]["compact"]["accuracy"], abs=15)  # type: ignore[index]
    assert (found["speedup"] or {}).keys() == {"1x128", "8x128"}
    assert any(line.startswith("in int8 (onnxruntime): accuracy ") for line in notes(report))
    assert found["bytes_on_disk"] > 1000


def test_a_run_keeps_and_compares_static_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brief(monkeypatch)
    task = TinyTask(tmp_path, max_position_embeddings=128)
    dense = tmp_path / "dense"
    task.build_model().save_pretrained(dense)
    strategy = Hybrid(window=PruningWindow(initial_warmup=0, final_warmup=0))
    request = RunRequest(baseline=str(dense), quantize="int8-static", max_loss=100)
    report = pipeline.fit(trainer(tmp_path, max_steps=8), PruningModule(task, strategy, learning_rate=1e-3), request)
    assert report is not None
    found = report["quantized"]
    assert found is not None
    static = found["static"]
    assert static is not None
    assert (found["kind"], static["float_layers"], static["calibration_examples"]) == ("int8-static", [], 96)
    assert [each["kind"] for each in static["compared"]] == ["float32", "int8"]
    assert static["compared"][0]["metrics"] == report["metrics"]["compact"]
    assert (found["speedup"] or {}).keys() == (static["compared"][1]["speedup"] or {}).keys() == {"1x128", "8x128"}
    assert any(line.startswith(f"0 of its {static['layers']} layers stay in float") for line in notes(report))
    kept = OnnxModel(tmp_path / "tiny" / "version_0" / "int8-static.onnx", task.build_model().config)
    assert kept(input_ids=task.example_inputs(2, 9)["input_ids"]).start_logits.shape == (2, 9)


def in_8_bits(file: Path) -> int:
    """Matrices of a file in 8 bits."""
    values = onnx.load(file).graph.initializer
    return sum(value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 2 for value in values)


def test_layers_that_hurt_most_stay_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that nothing reads is huge: in 8 bits, the layer that it is an input of has no room for the others."""
    task = TinyTask(tmp_path)
    model: Any = task.build_model().eval()
    last = model.bert.encoder.layer[1]
    with torch.no_grad():
        last.intermediate.dense.bias[3] = 1e4
        last.output.dense.weight[:, 3] = 0
    (file,) = export_onnx(model, tmp_path)
    monkeypatch.setattr(quantization, "export_onnx", lambda *_, **__: [file])  # once is enough
    evaluated: list[int] = []

    def evaluate(small: Any) -> dict[str, Any]:
        """A point for each matrix that is in 8 bits is lost."""
        evaluated.append(in_8_bits(small.file))
        return {"metrics": {"accuracy": 90.0 - evaluated[-1]}}

    keep = tmp_path / "kept.onnx"
    gate = Gate(max_loss=6.5, metrics={"accuracy": 90.0}, seed=0, keep=None)
    static = quantization.quantized(task, model, None, evaluate=evaluate, gate=gate)["static"]
    assert static is not None
    assert (static["layers"], len(static["float_layers"]), static["loss"]) == (13, 7, 6.0)
    assert len(evaluated) <= 7  # dynamic, all, a bisection of 13, and the one found once more
    names = [node.name for node in onnx.load(file).graph.node if node.op_type == "MatMul"]
    assert static["float_layers"][0] == names[-2]  # before the head
    hopeless = Gate(max_loss=0.5, metrics={"accuracy": 90.0}, seed=0, keep=keep)
    with pytest.raises(UserError, match=r"int8-static loses more than max_loss .* --max_loss, or take --quantize int8"):
        quantization.quantized(task, model, None, evaluate=evaluate, gate=hopeless)
    assert not keep.exists()


def test_layers_that_lost_everything_stay_as_they_are(tmp_path: Path) -> None:
    whole = TinyTask(tmp_path).build_model().eval()
    layout = PrunableLayout.of(whole)
    with torch.no_grad():
        for group in (layout.attention[0], layout.feed_forward[1]):
            group.members[-1].weight(whole).zero_()
    small: Any = compact(whole).eval()
    (file,) = export_onnx(small, tmp_path, dtype=torch.float32)
    inputs = padded_inputs("right")
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    quantizer = StaticQuantization(file, [inputs], tmp_path / "ranges.json")
    made = quantizer.write(quantizer.layers, tmp_path / "made.onnx")
    assert in_8_bits(made) == len(quantizer.layers) == 13 - 4 - 2
    expected, got = small(**inputs).start_logits, OnnxModel(made, small.config)(**inputs).start_logits
    assert 0 < (got - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_model_that_cannot_be_exported_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> list[Path]:
        raise UserError("a BertModel cannot be exported")

    task = TinyTask(tmp_path)
    model, places = task.build_model(), []
    monkeypatch.setattr(quantization, "export_onnx", refused)
    monkeypatch.setattr(quantization.nn.Module, "to", lambda _, place: places.append(place))
    with pytest.raises(UserError, match="a BertModel cannot be exported"):
        quantization.quantized(task, model, None, evaluate=lambda _: {})
    assert places == ["cpu", model.device]


def test_what_cannot_be_quantized_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> list[Path]:
        raise UserError("a BertModel cannot be exported")

    monkeypatch.setattr(quantization, "export_onnx", refused)
    task = TinyTask(tmp_path, max_position_embeddings=128)
    module = PruningModule(task, Hybrid(window=PruningWindow(initial_warmup=0, final_warmup=0)), learning_rate=1e-3)
    with pytest.warns(UserWarning, match="The report has nothing of int8: a BertModel cannot be exported"):
        report = pipeline.fit(trainer(tmp_path, max_steps=4), module, RunRequest(quantize="int8"))
    assert report is not None
    assert report["quantized"] is None


def test_what_generates_is_refused_before_training(tmp_path: Path) -> None:
    class Writing(TinyTask):
        def example_generation(self, tokens: int) -> Any:
            return lambda model, inputs: None

    with pytest.raises(UserError, match=r"quantize is 'int8', and Writing generates text, .*export --quantize int8"):
        require_quantizable(Writing(tmp_path))
    with pytest.raises(UserError, match=r"quantize is 'int4'; it must be 'int8' or 'int8-static', or left out"):
        require_quantizable(TinyTask(tmp_path), "int4")
    with pytest.raises(UserError, match=r"quantize is 'int8-static', and Writing generates text"):
        require_quantizable(Writing(tmp_path), "int8-static")
    with pytest.raises(UserError, match=r"max_loss is nan; it must be 0 or more"):
        require_quantizable(TinyTask(tmp_path), "int8-static", max_loss=float("nan"))
