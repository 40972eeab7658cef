"""The compact model in 8 bits, beside the others in a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import padded_inputs
from tiny_task import TinyTask, trainer

from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.exporting.variants import export_onnx
from bplightning.measuring import measure
from bplightning.reporting.table import notes
from bplightning.stages import pipeline, quantization
from bplightning.stages.quantization import OnnxModel, require_quantizable
from bplightning.stages.request import RunRequest
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")


def test_a_file_answers_like_the_model_it_was_made_from(tmp_path: Path) -> None:
    model = TinyTask(tmp_path).build_model().eval()
    (file,) = export_onnx(model, tmp_path)
    inputs = padded_inputs("right")
    expected, got = model(**inputs), OnnxModel(file, model.config)(**inputs, labels=torch.zeros(1))
    torch.testing.assert_close(got.start_logits, expected.start_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["end_logits"], expected.end_logits, rtol=1e-4, atol=1e-5)


def test_a_run_reports_scores_size_and_speed_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency = measure.latency
    brief: Any = {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 2}
    monkeypatch.setattr(measure, "latency", lambda *args, **call: latency(*args, **(call | brief)))
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
    with pytest.raises(UserError, match=r"quantize is 'int4'; it must be 'int8', or left out"):
        require_quantizable(TinyTask(tmp_path), "int4")
