"""Progress on a terminal of 80 columns: one line for each stage, with no name cut."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from rich.console import Console
from tiny_task import TinyTask

from bplightning.stages.refill import Refill
from bplightning.stages.request import PLAIN, RunRequest
from bplightning.strategies.hybrid import Hybrid
from bplightning.training import stage_bar
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.stage_bar import StageBar


def drawn(folder: Path, bar: StageBar) -> None:
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    usual = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(callbacks=[bar], max_epochs=1, val_check_interval=6, num_sanity_val_steps=1, **usual)
    trainer.fit(PruningModule(task, Hybrid(granularity={"attention": "4x4"}), learning_rate=1e-3), datamodule=task)


def test_one_line_for_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_bar, "OFTEN", 0)
    said = io.StringIO()
    console = Console(file=said, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    drawn(tmp_path, StageBar("stage 2/5 prune", console=console))
    text = re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", said.getvalue())
    assert len(re.findall(r"stage [^\r\n]*\n", text)) == 1  # the last line stays
    parts = [part.strip() for part in text.replace("\n", "\r").split("\r")]
    lines = [part for part in parts if part.startswith("stage")]  # logs may come above it, as other tests left them
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"stage 2/5 prune  step 1/12  \d:\d\d left  loss \d\S*", lines[0])
    assert any(re.fullmatch(r"stage 2/5 prune  step 6/12  validating, batch \d+/\d+", line) for line in lines)
    assert re.fullmatch(r"stage 2/5 prune  step 12/12  in 0:\d\d  loss \S+  density \S+  accuracy \S+", lines[-1])
    assert "v_num" not in text


def test_an_evaluation_names_its_stage_and_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_bar, "OFTEN", 0)
    said = io.StringIO()
    bar = StageBar("stage 2/5 prune", "stage 5/5 evaluate", Console(file=said, width=60, force_terminal=True))
    task = TinyTask(tmp_path, hidden_size=16, intermediate_size=32)
    module = frozen_module(task, task.build_model(), prefix="compact")
    trainer = Trainer(callbacks=[bar], accelerator="cpu", logger=False, enable_model_summary=False)
    trainer.validate(module, datamodule=task, verbose=False)
    assert re.search(r"stage 5/5 evaluate  compact  batch 1/\d", said.getvalue())


def test_stages_are_counted_as_the_run_is_asked_for() -> None:
    assert PLAIN.stage("prune") == "stage 1/3 prune"
    whole = RunRequest(baseline="train", refill=Refill(max_epochs=1))
    assert [whole.stage(name) for name in ("baseline", "prune", "compact", "refill", "evaluate")] == [
        *("stage 1/5 baseline", "stage 2/5 prune", "stage 3/5 compact", "stage 4/5 refill", "stage 5/5 evaluate")
    ]


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    said = io.StringIO()
    bar = StageBar("prune", console=Console(file=said, width=80, force_terminal=True))
    bar.disable()
    drawn(tmp_path, bar)
    assert said.getvalue() == ""
