"""One run in four processes, killed and interrupted in between, against the same run in one."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from programs import Program

ROOT = Path(__file__).parents[2]
COMMAND = [
    *("fit", "--task", "user_task.Slow", "--strategy", "hybrid", "--strategy.granularity", "{attention: 16x16}"),
    *("--trainer.max_epochs", "2", "--trainer.val_check_interval", "0.5", "--trainer.accelerator", "cpu"),
    *(
        "--model.learning_rate",
        "1e-3",
        "--strategy.window.final_warmup",
        "2",
        "--baseline",
        "train",
        "--start",
        "baseline",
    ),
]
USER_TASK = '''
import sys
import time
from functools import partial
from pathlib import Path

from tiny_task import TinyTask

from bplightning.measuring import measure

measure.latency = partial(measure.latency, seconds=0.0, block_ms=0.0, min_rounds=6)  # of no matter here


class Slow(TinyTask):
    """Long enough to be interrupted, at a place that the test can see."""

    def __init__(self):
        super().__init__(Path(), max_position_embeddings=128)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        baseline = Path(self.trainer.log_dir or "").name == "baseline"
        if not baseline and self.trainer.state.fn == "fit":
            where = "training" if self.trainer.training else "validating"
            print(where, self.trainer.global_step, flush=True)
            time.sleep(0.05)
        return batch
'''
pytestmark = pytest.mark.timeout(400)


def start(folder: Path, *more: str) -> Program:
    """`python cli.py fit` in a folder."""
    return Program(ROOT / "cli.py", *COMMAND, *more, cwd=folder, variables=variables(folder))


def variables(folder: Path) -> dict[str, str]:
    """What that needs in its environment; the task is put there, too."""
    (folder / "user_task.py").write_text(USER_TASK)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests" / "support")])}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder).end() == 0
    return folder / "runs" / "slow-hybrid"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Program], list[int]]:
    """The same run: killed, then Ctrl-C in a step, then SIGTERM in a validation, then to its end."""
    folder = tmp_path_factory.mktemp("pieces")
    runs = folder / "runs" / "slow-hybrid"
    killed = start(folder)
    killed.wait_for(lambda line: line == "training 8\n")  # two steps after a checkpoint
    assert (runs / "version_0" / "checkpoints" / "last.ckpt").exists()
    statuses = [killed.end(signal.SIGKILL)]
    stopped = start(folder, "--ckpt_path", "last")
    stopped.wait_for(lambda line: line == "training 9\n")
    statuses.append(stopped.end(signal.SIGINT))
    time.sleep(0.01)
    terminated = start(folder, "--ckpt_path", "last")
    terminated.wait_for(lambda line: line == "validating 18\n")
    statuses.append(terminated.end(signal.SIGTERM))
    ended = start(folder, "--ckpt_path", "last")
    statuses.append(ended.end())
    return runs, [killed, stopped, terminated, ended], statuses


def test_the_statuses_say_how_each_process_ended(pieces: tuple[Path, list[Program], list[int]]) -> None:
    runs, processes, statuses = pieces
    assert statuses == [-signal.SIGKILL, 130, 143, 0], processes[-1].said
    assert sorted(path.name for path in runs.iterdir()) == [f"version_{number}" for number in range(4)]


def test_the_end_is_bit_for_bit_the_same(whole: Path, pieces: tuple[Path, list[Program], list[int]]) -> None:
    runs, _, _ = pieces
    one = torch.load(whole / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    four = torch.load(runs / "version_3" / "checkpoints" / "last.ckpt", weights_only=True)
    assert one["global_step"] == four["global_step"] == 24
    assert one["state_dict"].keys() == four["state_dict"].keys()
    assert all(torch.equal(four["state_dict"][name], value) for name, value in one["state_dict"].items())
    compact = [folder / "compact" / "model.safetensors" for folder in (whole / "version_0", runs / "version_3")]
    assert compact[0].read_bytes() == compact[1].read_bytes()


def test_each_process_went_on_where_the_one_before_had_saved(pieces: tuple[Path, list[Program], list[int]]) -> None:
    _, processes, _ = pieces
    trained = [[int(step) for step in re.findall(r"^training (\d+)$", process.said, re.M)] for process in processes]
    assert trained[0][0] == 0
    assert trained[1][0] == 6  # SIGKILL: from the checkpoint of the validation
    assert trained[2][0] == trained[1][-1] + 1  # SIGINT: the step was finished and saved
    assert trained[2][-1] == 17
    assert trained[3] == list(range(18, 24))
    assert re.findall(r"^validating (\d+)$", processes[3].said, re.M)[:3] == ["18"] * 3  # in full, from its first batch


def test_it_says_how_to_go_on(pieces: tuple[Path, list[Program], list[int]]) -> None:
    _, processes, _ = pieces
    for number, name in ((1, "SIGINT"), (2, "SIGTERM")):
        said = processes[number].said
        command = f"To resume: python cli.py {' '.join(COMMAND[:5])} .*--start baseline --resume true\n"
        assert re.search(rf"Stopped by {name} after optimizer step \d+\. {command}", said), said
        assert "Traceback" not in said


def test_the_baseline_is_trained_once(whole: Path, pieces: tuple[Path, list[Program], list[int]]) -> None:
    runs, processes, _ = pieces
    assert "Training the dense baseline." in processes[0].said
    for process in processes[1:]:
        assert "Training the dense baseline." not in process.said
        assert "Taking the dense baseline that the interrupted run had trained" in process.said
    expected = (whole / "version_0" / "baseline" / "model" / "model.safetensors").read_bytes()
    assert (runs / "version_3" / "baseline" / "model" / "model.safetensors").read_bytes() == expected


def test_the_configuration_of_a_resumed_run_repeats_the_run_from_its_start(
    pieces: tuple[Path, list[Program], list[int]],
) -> None:
    runs, _, _ = pieces
    first, last = (yaml.safe_load((runs / name / "config.yaml").read_text()) for name in ("version_0", "version_3"))
    assert first == last
    assert last["ckpt_path"] is None


# -- two at once -------------------------------------------------------------------------------------------------------

SHORT = [
    "--baseline",
    "none",
    "--start",
    "pretrained",
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "6",
]


@pytest.mark.parametrize("resume", ["false", "true"])
def test_of_two_that_begin_at_once_each_has_a_run_or_one_is_refused(tmp_path: Path, resume: str) -> None:
    programs = [start(tmp_path, *SHORT, "--resume", resume) for _ in range(2)]
    statuses = sorted(program.end() for program in programs)
    said = "\n".join(program.said for program in programs)
    assert "Traceback" not in said, said
    runs = sorted(path.name for path in (tmp_path / "runs" / "slow-hybrid").iterdir())
    assert all((tmp_path / "runs" / "slow-hybrid" / run / "report.json").exists() for run in runs)
    if resume == "false":
        assert (statuses, runs) == ([0, 0], ["version_0", "version_1"]), said
        return
    assert len(runs) == 1, said
    if statuses == [0, 2]:
        (line,) = (line for line in said.splitlines() if "error:" in line)
        assert "another process is working on the run" in line or "another process has begun this run too" in line
        assert start(tmp_path, *SHORT, "--resume", "true").end() == 0
    else:  # the first had ended before the second lost its patience
        assert statuses == [0, 0], said
