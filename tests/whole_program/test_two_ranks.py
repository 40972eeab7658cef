"""Two processes that train together, by the command line: all stages, one process killed, and the command repeated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from staged_run import prepared, run

Runs = tuple[Path, Path, list[tuple[int, str]]]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run that nothing interrupts, the one of which a rank died in each stage, and what its processes gave."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "pieces")]
    whole, last = (prepared(folder, ", devices: 2, strategy: ddp") for folder in folders)
    status, said = run(folders[0])
    assert status == 0, said
    return whole, last, [run(folders[1], at) for at in ("baseline 9 rank 1", "pruning 8 rank 1", "refill 8 rank 0", "")]


def test_one_folder_one_report_of_two_ranks(runs: Runs) -> None:
    whole, last, _ = runs
    for folder in (whole, last):
        assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
        assert json.loads((folder / "report.json").read_text())["world_size"] == 2
        first, second = json.loads((folder / "report.json").read_text())["mask_hashes"]
        assert first == second
    assert {path.name for path in last.iterdir()} == {path.name for path in whole.iterdir()}


def test_only_the_first_rank_prepares_data_and_writes(runs: Runs) -> None:
    said = runs[2][-1][1]
    for what in ("preparing on rank", "written by rank"):
        assert set(re.findall(rf"{what} (\d)", said)) == {"0"}


def test_a_rank_that_dies_ends_the_others_and_the_command_goes_on(runs: Runs) -> None:
    _, _, pieces = runs
    assert [status != 0 for status, _ in pieces] == [True, True, True, False], pieces[-1][1]
    begins = [
        re.findall(rf"\b{stage} (\d+) rank 1\b", said)[:1]
        for stage, (_, said) in zip(("baseline", "baseline", "pruning", "refill"), pieces, strict=True)
    ]
    assert begins == [["0"], ["6"], ["6"], ["6"]]  # of each epoch, 6 steps on both ranks, there is a checkpoint
    assert "DistributedSampler" not in pieces[-1][1]  # no advice that would not help


def test_the_end_is_that_of_the_run_that_nothing_interrupted(runs: Runs) -> None:
    whole, last, _ = runs
    one, many = (json.loads((folder / "report.json").read_text()) for folder in (whole, last))
    for key in ("density", "heads", "units", "refill"):
        assert one[key] == many[key], key
    one, many = (load_file(folder / "compact" / "model.safetensors") for folder in (whole, last))
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert (value - many[name]).abs().max() < 1e-5, name
