"""Teacher, pruning, refill, evaluation, report: one command, killed in every stage and repeated."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = """
task: {class_path: user_task.Deadly}
strategy: {class_path: hybrid, init_args: {granularity: {attention: 16x16}, final_warmup: 2}}
baseline: train
distillation: {teacher: baseline}
refill: {max_epochs: 2, heads: any}
resume: true
model: {learning_rate: 1.0e-3}
trainer: {max_epochs: 2, accelerator: cpu}
"""
USER_TASK = '''
import os
from pathlib import Path

from tiny_task import TinyTask


class Deadly(TinyTask):
    """Says each training step, and dies without a word where it is told to."""

    def __init__(self):
        super().__init__(Path(), max_position_embeddings=128)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        folder = Path(self.trainer.log_dir or "").name
        stage = folder if folder in ("baseline", "refill") else "pruning"
        if self.trainer.training:
            self.reached(f"{stage} {self.trainer.global_step}")
        return batch

    def setup(self, stage):
        if stage == "validate":
            self.reached("evaluating" if self.trainer.state.fn == "validate" else "compacting")

    def example_inputs(self, *shape):
        self.reached("measuring")
        return super().example_inputs(*shape)

    def reached(self, point):
        print(point, flush=True)
        if os.environ.get("DIE_AT") == point:
            os._exit(9)
'''
POINTS = ("baseline 18", "pruning 3", "pruning 20", "compacting", "refill 2", "refill 19", "evaluating", "measuring")
"""A second epoch of the teacher, before pruning's first checkpoint, its second epoch, and so on."""

pytestmark = pytest.mark.timeout(400)


def run(folder: Path, die_at: str = "") -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "fit", "--config", "recipe.yaml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'tests' / 'core'}", "DIE_AT": die_at},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == (9 if die_at else 0), done.stdout
    return done.stdout


def prepared(folder: Path) -> Path:
    (folder / "user_task.py").write_text(USER_TASK)
    (folder / "recipe.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    folder = prepared(tmp_path_factory.mktemp("whole"))
    run(folder)
    return folder / "runs" / "deadly-hybrid" / "version_0"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The same command, killed at each point, then to its end, and once more; with what each process said."""
    folder = prepared(tmp_path_factory.mktemp("pieces"))
    said = [run(folder, point) for point in (*POINTS, "", "")]
    return folder / "runs" / "deadly-hybrid" / "version_0", said


def steps(said: str, stage: str) -> list[int]:
    return [int(step) for step in re.findall(rf"^{stage} (\d+)$", said, re.M)]


def test_the_end_is_bit_for_bit_the_same_in_one_run_folder(whole: Path, pieces: tuple[Path, list[str]]) -> None:
    last, _ = pieces
    assert [path.name for path in last.parent.iterdir()] == ["version_0"]
    for part in ("baseline/model", "compact"):
        assert (last / part / "model.safetensors").read_bytes() == (whole / part / "model.safetensors").read_bytes()
    one, many = (json.loads((folder / "report.json").read_text()) for folder in (whole, last))
    for key in ("metrics", "density", "heads", "refill", "distillation", "equivalence"):
        assert one[key] == many[key], key
    assert {path.name for path in last.iterdir()} == {path.name for path in whole.iterdir()}


def test_no_finished_stage_is_repeated(pieces: tuple[Path, list[str]]) -> None:
    _, said = pieces
    trained = {stage: [steps(process, stage) for process in said] for stage in ("baseline", "pruning", "refill")}
    assert trained["baseline"] == [list(range(19)), list(range(12, 24)), *[[]] * 8]
    # The second process dies before pruning has a checkpoint, the third begins it anew; the others go on from epochs.
    assert trained["pruning"] == [[], list(range(4)), list(range(21)), list(range(12, 24)), *[[]] * 6]
    assert trained["refill"] == [[], [], [], [], list(range(3)), list(range(20)), list(range(12, 24)), *[[]] * 3]
    # Of the three models the seventh process dies before the first, the eighth evaluates all.
    assert [process.count("evaluating") for process in said] == [0, 0, 0, 0, 0, 0, 1, 3, 0, 0]
    assert "has ended, nothing is left to do" in said[-1]
    assert "measuring" not in said[-1]


def test_the_log_keeps_the_lines_of_the_processes_before(whole: Path, pieces: tuple[Path, list[str]]) -> None:
    last, _ = pieces
    for stage in ("baseline", ".", "refill"):
        one, many = (
            {row["step"] for row in csv.DictReader((folder / stage / "metrics.csv").read_text().splitlines())}
            for folder in (whole, last)
        )
        assert one <= many, stage
