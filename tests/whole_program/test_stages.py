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
from staged_run import FIT, ROOT, prepared, run, variables

POINTS = (
    *("baseline 18 rank 0", "pruning 3 rank 0", "pruning 20 rank 0", "compacting"),
    *("refill 2 rank 0", "refill 19 rank 0", "evaluating", "measuring"),
)
"""A second epoch of the teacher, before pruning's first checkpoint, its second epoch, and so on."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    last = prepared(folder)
    # With another seed of hashes than the others, which are forks of one process.
    command = [sys.executable, str(ROOT / "cli.py"), *FIT]
    subprocess.run(command, cwd=folder, env=os.environ | variables(folder), check=True)
    return last


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The same command, killed at each point, then to its end, and once more; with what each process said."""
    folder = tmp_path_factory.mktemp("pieces")
    last = prepared(folder)
    done = [run(folder, point) for point in (*POINTS, "", "")]
    assert [status for status, _ in done] == [*[9] * len(POINTS), 0, 0], done[-1][1]
    return last, [said for _, said in done]


def steps(said: str, stage: str) -> list[int]:
    return [int(step) for step in re.findall(rf"^{stage} (\d+) rank 0$", said, re.M)]


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
