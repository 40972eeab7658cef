"""Two tasks of a SLURM job, by the variables that srun sets, are told to end as before a preemption."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from staged_run import FIT, ROOT, prepared

pytestmark = pytest.mark.timeout(200)


def test_sigterm_leaves_a_checkpoint_and_the_status_by_which_the_script_requeues(tmp_path: Path) -> None:
    last = prepared(tmp_path, ", devices: 1, num_nodes: 2, strategy: ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        **{"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "bplightning", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"},
        **{"SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_LOCALID": "0", "SLURM_NODELIST": "127.0.0.1"},
        **{"MASTER_PORT": str(port), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'tests' / 'support'}"},
    }
    tasks = []
    for rank in ("0", "1"):
        with (tmp_path / f"task{rank}.log").open("w") as log:
            tasks.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        str(ROOT / "cli.py"),
                        *FIT,
                    ],
                    cwd=tmp_path,
                    env=os.environ | job | {"SLURM_PROCID": rank, "SLURM_NODEID": rank},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    logs = [tmp_path / f"task{rank}.log" for rank in (0, 1)]
    end = time.monotonic() + 100
    while not all("pruning 7 rank" in log.read_text() for log in logs):
        assert time.monotonic() < end, logs[0].read_text()
        time.sleep(0.02)
    for task in tasks:
        task.send_signal(signal.SIGTERM)
    assert [task.wait(timeout=60) for task in tasks] == [143, 143], logs[0].read_text()
    assert (last / "checkpoints" / "last.ckpt").is_file()
    assert "Stopped by SIGTERM after optimizer step" in logs[0].read_text()
