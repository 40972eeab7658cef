"""One run on two nodes: two network namespaces joined by a cable of their own, an agent of torchrun in each.

    sudo python benchmarks/reliability/two_nodes.py

Each agent is started by the recipe, configs/cluster/torchrun.sh, and they meet by c10d at the first one's address;
neither has another network. The embedded example made short; the same on one node of two processes, and compared. It
needs Linux, root and Debian's iproute2, and takes the namespaces away afterwards. What it found lands in
benchmarks/results/two_nodes.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.reliability.kill_loop import ROUNDING, SHORT, compare, result

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "two_nodes.json"
NODES = {"bplightning-a": "10.77.0.1", "bplightning-b": "10.77.0.2"}
"""Namespace to its address."""


def main() -> None:
    start = time.monotonic()
    head = next(iter(NODES.values()))
    with tempfile.TemporaryDirectory() as scratch, namespaces():
        one, two = Path(scratch) / "one", Path(scratch) / "two"
        run(one, [node(one, nodes=1, processes=2)])
        run(two, [[*inside(name), *node(two, nodes=2, processes=1, head=head, name=name)] for name in NODES])
        (report,) = two.glob("runs/*/*/report.json")
        difference = compare(two, result(one), 0)
        hashes = json.loads(report.read_text())["mask_hashes"]
    same = difference is not None and difference <= ROUNDING and len(set(hashes)) == 1 < len(hashes)
    found = {
        **{"runs": 1, "nodes": len(NODES), "same_result_as_one_node": same, "largest_difference": difference},
        **{"seconds": round(time.monotonic() - start), "date": datetime.now(UTC).date().isoformat()},
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(not same)


@contextmanager
def namespaces() -> Iterator[None]:
    """Two namespaces with an end of a cable each."""
    (first, head), (second, other) = NODES.items()
    try:
        for name in NODES:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in ((first, head), (second, other)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in NODES:
            subprocess.run(["ip", "netns", "delete", name], check=False)  # and the cable with them


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def inside(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def node(folder: Path, *, nodes: int, processes: int, head: str = "localhost", name: str = "") -> list[str]:
    """The command that starts one node's share of a run, by the recipe."""
    variables = {"NODES": nodes, "HEAD": head, "GPUS": processes, "GLOO_SOCKET_IFNAME": "cable" if name else "lo"}
    if name:  # both have the machine's name, which stands for neither address
        variables["PET_LOCAL_ADDR"] = NODES[name]
    variables |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_DATASETS_CACHE": folder / "cache"}
    recipe = ["bash", str(ROOT / "configs" / "cluster" / "torchrun.sh"), *SHORT, "--task.batch_size", "4"]
    return ["env", *(f"{key}={value}" for key, value in variables.items()), *recipe]


def run(folder: Path, commands: list[list[str]]) -> None:
    """Start all, and require that all end well."""
    folder.mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    logs = [folder / f"node{number}.txt" for number in range(len(commands))]
    started = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("w") as out:
            started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out))
    statuses = [process.wait() for process in started]
    if any(statuses):
        sys.exit("\n".join(log.read_text()[-5000:] for log in logs))


if __name__ == "__main__":
    main()
