"""The end of a run that writes a portable model: what is saved, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import TinyTask, trainer
from transformers import BertForQuestionAnswering

from bplightning.contracts.target import Target
from bplightning.measuring import measure
from bplightning.reporting.report import load_report
from bplightning.stages.compact_stage import Saving
from bplightning.stages.finishing import Ending, finish
from bplightning.stages.request import RunRequest
from bplightning.strategies.magnitude import Magnitude
from bplightning.training.module import PruningModule


def test_a_portable_model_is_saved_and_its_cost_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = measure.latency
    brief = {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 2}
    monkeypatch.setattr(measure, "latency", lambda *args, **options: latency(*args, **(options | brief)))
    granularity = {"attention": "head", "feed_forward": "unit"}
    module = PruningModule(TinyTask(tmp_path), Magnitude(target=Target(density=0.5), granularity=granularity))
    module.configure_model()
    for mask in module.strategy.all_masks:
        mask.set_grid(torch.rand(mask.kept.shape) < 0.5)
    out = tmp_path / "out"
    ending = Ending(out=out, report=out / "report.json", saving=Saving(portable=True), at_once=True)
    assert finish(trainer(tmp_path), module, ending, RunRequest(command="again")) is not None
    report: Any = load_report(out / "report.json")
    cost, config = report["portable"], json.loads((out / "config.json").read_text())
    widest = max(layer["kept"] for layer in report["units"]["by_layer"])
    assert cost["config"] == {"intermediate_size": [24, widest]}
    assert config["intermediate_size"] == widest
    assert not {"compaction", "quantization_config"} & set(config)
    saved = BertForQuestionAnswering.from_pretrained(out)
    assert type(saved.bert.encoder.layer[0].attention.self).__name__ == "BertSelfAttention"
    stored = sum(parameter.numel() for parameter in saved.parameters())
    assert cost["parameters"] < stored == report["parameters"]["compact"]["all"] < report["parameters"]["dense"]["all"]
    assert cost["flops"] < report["flops"]["compact"] < report["flops"]["dense"]
    assert cost["latency_ms"].keys() == cost["speedup"].keys() == report["speedup"].keys()
    card = (out / "README.md").read_text()
    assert "import bplightning" not in card
    assert "padded with zeros" in card
    assert f"intermediate_size 24 to {widest}" in " ".join(capsys.readouterr().out.split())
