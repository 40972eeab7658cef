"""Progress on a terminal of 80 columns: one line for each stage, with no name cut."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from rich.console import Console
from tiny_task import TinyTask

from bplightning.strategies.hybrid import Hybrid
from bplightning.training import stage_bar
from bplightning.training.module import PruningModule
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
    drawn(tmp_path, StageBar("pruning", console))
    text = re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", said.getvalue())
    assert text.count("\n") == 1  # the last line stays
    lines = [line.strip() for line in text.replace("\n", "\r").split("\r") if line.strip()]
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"pruning  1/12  \d:\d\d left  loss \d\S*", lines[0])
    assert any(re.fullmatch(r"pruning  6/12  validating \d+/\d+", line) for line in lines)
    assert re.fullmatch(r"pruning  12/12  in 0:\d\d  loss \S+  density \S+  accuracy \S+", lines[-1])
    assert "v_num" not in text


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    said = io.StringIO()
    bar = StageBar("pruning", Console(file=said, width=80, force_terminal=True))
    bar.disable()
    drawn(tmp_path, bar)
    assert said.getvalue() == ""
