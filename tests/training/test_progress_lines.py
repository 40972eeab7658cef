"""Progress in a log file: whole lines, some seconds apart, and one with what each validation found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from tiny_task import TinyTask

from bplightning.contracts.window import PruningWindow
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule
from bplightning.training.progress_lines import ProgressLines


def lines(folder: Path, capsys: pytest.CaptureFixture[str], progress: ProgressLines) -> list[str]:
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    trainer = Trainer(
        callbacks=[progress],
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=6,
    )
    capsys.readouterr()
    module = PruningModule(
        task, Hybrid(window=PruningWindow(final_warmup=2), granularity={"attention": "4x4"}), learning_rate=1e-3
    )
    trainer.fit(module, datamodule=task)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]


def test_lines_come_some_seconds_apart_and_after_validations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(tmp_path, capsys, ProgressLines(every_seconds=1000))
    assert [line.split()[1] for line in found] == ["1/12", "6/12", "12/12"]
    assert re.fullmatch(r"step 1/12  \d:\d\d left  loss \S+", found[0])
    assert re.fullmatch(r"step 6/12  \d:\d\d left  loss \S+  density \S+  accuracy \S+", found[1])
    assert max(map(len, found)) <= 80


def test_every_step_can_have_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [line.split()[1] for line in lines(tmp_path, capsys, ProgressLines(every_seconds=0))]
    assert steps[:6] == [f"{step}/12" for step in range(1, 7)]


def test_it_can_be_turned_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines()
    progress.disable()
    assert lines(tmp_path, capsys, progress) == []
