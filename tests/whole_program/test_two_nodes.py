"""Two ranks, all stages, by the command line: on one node that is killed and started again, and on two nodes.

The nodes are two torchrun agents that meet on one machine: one is killed half-way, and both are started again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from staged_run import FIT, ROOT, prepared, run

Pieces = tuple[Path, list[tuple[int, str]]]
Nodes = tuple[Path, list[tuple[int, str]]]

pytestmark = pytest.mark.timeout(400)
ONE_NODE, TWO_NODES = ", devices: 2, strategy: ddp", ", devices: 1, num_nodes: 2, strategy: ddp"


class Agent:
    """One node's `torchrun`."""

    def __init__(self, folder: Path, node: int, port: int) -> None:
        self.log = folder / f"node{node}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
                    *(f"--node_rank={node}", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}"),
                    *(
                        f"--rdzv_id={port}",
                        str(ROOT / "cli.py"),
                        *FIT,
                    ),
                ],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'tests' / 'support'}"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, line: str) -> None:
        end = time.monotonic() + 100
        while line not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut does: the agent and its worker at once."""
        workers = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        for pid in (*map(int, workers), self.process.pid):
            os.kill(pid, 9)
        self.process.wait()


def agents(folder: Path) -> list[Agent]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [Agent(folder, node, port) for node in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks on one node that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    last = prepared(folder, ONE_NODE)
    status, said = run(folder)
    assert status == 0, said
    return last


# -- one node ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """The same run, of which first one rank and then the other died, and what its processes gave."""
    folder = tmp_path_factory.mktemp("pieces")
    last = prepared(folder, ONE_NODE)
    return last, [run(folder, at) for at in ("pruning 8 rank 1", "refill 8 rank 0", "")]


def test_one_folder_one_report_of_two_ranks(whole: Path, pieces: Pieces) -> None:
    last, _ = pieces
    for folder in (whole, last):
        assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
        assert json.loads((folder / "report.json").read_text())["world_size"] == 2
        first, second = json.loads((folder / "report.json").read_text())["mask_hashes"]
        assert first == second
    assert {path.name for path in last.iterdir()} == {path.name for path in whole.iterdir()}


def test_only_the_first_rank_prepares_data_and_writes(pieces: Pieces) -> None:
    said = pieces[1][-1][1]
    for what in ("preparing on rank", "written by rank"):
        assert set(re.findall(rf"^{what} (\d)", said, re.M)) == {"0"}


def test_a_rank_that_dies_ends_the_others_and_the_command_goes_on(pieces: Pieces) -> None:
    _, done = pieces
    assert [status != 0 for status, _ in done] == [True, True, False], done[-1][1]
    begins = [
        re.findall(rf"^{stage} (\d+) rank 1$", said, re.M)[:1]
        for stage, (_, said) in zip(("baseline", "pruning", "refill"), done, strict=True)
    ]
    assert begins == [["0"], ["6"], ["6"]]  # of each epoch, 6 steps on both ranks, there is a checkpoint
    assert "DistributedSampler" not in done[-1][1]  # no advice that would not help


def test_the_end_is_that_of_the_run_that_nothing_interrupted(whole: Path, pieces: Pieces) -> None:
    last, _ = pieces
    one, many = (json.loads((folder / "report.json").read_text()) for folder in (whole, last))
    for key in ("density", "heads", "units", "refill"):
        assert one[key] == many[key], key
    one, many = (load_file(folder / "compact" / "model.safetensors") for folder in (whole, last))
    assert one.keys() == many.keys()
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=0, atol=1e-5)


# -- two nodes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    """The same run of two nodes in two starts, and what the first node said in each."""
    folder = tmp_path_factory.mktemp("nodes")
    last = prepared(folder, TWO_NODES)
    first, second = agents(folder)
    second.wait_for("pruning 8 rank 1")
    second.kill()
    ended = [(first.process.wait(timeout=60), first.said)]
    first, second = agents(folder)
    ended.append((first.process.wait(timeout=100), first.said))
    assert second.process.wait(timeout=30) == 0, second.said
    assert "preparing on rank 1" in second.said  # once a node, so by its own first rank
    return last, ended


def test_the_other_node_ends_with_a_clear_error(nodes: Nodes) -> None:
    status, said = nodes[1][0]
    assert status != 0
    expected = (
        r"bplightning: error: rank 0 of 2 lost another rank at step \d+, which was stopped or failed: see its own "
    )
    assert re.search(expected + r"output\. Start all ranks again .*fit .*--config recipe.yaml\n", said), said


def test_both_go_on_from_the_checkpoint_in_the_same_folder(nodes: Nodes) -> None:
    two, (_, (status, said)) = nodes
    assert status == 0, said
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert not list(two.rglob(".*"))  # no half-written file
    assert re.findall(r"^(\w+) (\d+) rank 0$", said, re.M)[0] == ("pruning", "6")


def test_two_nodes_give_what_one_gives(whole: Path, nodes: Nodes) -> None:
    two, _ = nodes
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (whole, two))
    for key in ("world_size", "density", "heads", "units"):
        assert first[key] == second[key], key
    first, second = (load_file(folder / "compact" / "model.safetensors") for folder in (whole, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)
