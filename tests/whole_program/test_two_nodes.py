"""Two nodes as two torchrun agents that meet on one machine: one is killed half-way, and both are started again."""

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
from safetensors.torch import load_file
from staged_run import ROOT, prepared, run

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
                    *(f"--rdzv_id={port}", str(ROOT / "cli.py"), "fit", "--config", "recipe.yaml"),
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
def nodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[tuple[int, str]]]:
    """A run of one node, the same of two nodes in two starts, and what the first node said in each."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    one, two = prepared(folders[0], ONE_NODE), prepared(folders[1], TWO_NODES)
    status, said = run(folders[0])
    assert status == 0, said
    first, second = agents(folders[1])
    second.wait_for("pruning 8 rank 1")
    second.kill()
    ended = [(first.process.wait(timeout=60), first.said)]
    first, second = agents(folders[1])
    ended.append((first.process.wait(timeout=100), first.said))
    assert second.process.wait(timeout=30) == 0, second.said
    assert "preparing on rank 1" in second.said  # once a node, so by its own first rank
    return one, two, ended


def test_the_other_node_ends_with_a_clear_error(nodes: tuple[Path, Path, list[tuple[int, str]]]) -> None:
    status, said = nodes[2][0]
    assert status != 0
    expected = r"bplightning: error: rank 0 of 2 lost another rank at step \d+, which was stopped or failed: its own "
    assert re.search(
        expected + r"output says why. Start all ranks again to go on: .*fit --config recipe.yaml\n", said
    ), said


def test_both_go_on_from_the_checkpoint_in_the_same_folder(nodes: tuple[Path, Path, list[tuple[int, str]]]) -> None:
    _, two, (_, (status, said)) = nodes
    assert status == 0, said
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert not list(two.rglob(".*"))  # no half-written file
    assert re.findall(r"\b(\w+) (\d+) rank 0\b", said)[0] == ("pruning", "6")


def test_two_nodes_give_what_one_gives(nodes: tuple[Path, Path, list[tuple[int, str]]]) -> None:
    one, two, _ = nodes
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (one, two))
    for key in ("world_size", "density", "heads", "units"):
        assert first[key] == second[key], key
    first, second = (load_file(folder / "compact" / "model.safetensors") for folder in (one, two))
    for name, value in first.items():
        assert (value - second[name]).abs().max() < 1e-5, name
