"""Kills runs at random moments, starts each again by the same command until it ends, and compares what it ends with.

    python benchmarks/reliability/kill_loop.py [--kills 20] [--processes 1 2]

The embedded example made short, with all its stages: a dense baseline, pruning with a checkpoint at each validation,
compaction, refill, evaluation, measuring. One run is left alone. Of each of the others SIGKILL ends up to four
processes, at moments drawn (seeded) from the first one's course: the kinds of moment in turn, a time among all of that
kind. With two processes (DDP, gloo) it ends rank 0, rank 1 or both. A run is lost if it does not end, if its masks are
others, or if a weight differs: by a bit in one process, by more than rounding in two. The counts land in
benchmarks/results/kill_loop.json, with how long it took.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "kill_loop.json"
SHORT = [
    *("--task.max_length", "96", "--task.stride", "32", "--task.eval_batch_size", "16"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "12", "--trainer.limit_val_batches", "2"),
    *("--trainer.val_check_interval", "4", "--strategy.window.final_warmup", "2"),
    *("--refill.max_epochs", "1", "--refill.heads", "any"),
]
"""The embedded example made short."""

COMMAND = [
    *(sys.executable, str(ROOT / "cli.py"), "fit", "--resume", "true", "--trainer.callbacks", "kill_loop.Points"),
    *SHORT,
]
ROWS = 8
"""Rows of a step, of all processes together."""

KILLS_OF_A_RUN = 4
ROUNDING = 1e-5
"""Largest difference of a weight after training on two ranks, whose sums may be added up in another order."""

END_OF_OTHERS = 120
"""Seconds in which the other rank must have ended by itself."""

STARTING = "starting"
AFTER = {"baseline": "saving the baseline", "pruning": "compacting", "refill": "saving the compact model"}
"""What follows a stage's training."""


class Points(Callback):
    """Says where a process is, in lines that `Course` reads; the runs here have it among their callbacks."""

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        self._say(trainer, f"{_stage(trainer)}, step {trainer.global_step}")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._say(trainer, f"evaluating {module.metric_prefix}")
        elif not trainer.sanity_checking:
            self._say(trainer, f"validation, {_stage(trainer)}, step {trainer.global_step}")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING and module.metric_prefix == "compact":
            self._say(trainer, "measuring")

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        self._say(trainer, f"checkpoint, {_stage(trainer)}, step {trainer.global_step}")

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self._say(trainer, AFTER[_stage(trainer)])

    @staticmethod
    def _say(trainer: Any, point: str) -> None:
        line = f"\n@{trainer.global_rank} {os.getpid()} {time.monotonic()} {point}\n"
        os.write(1, line.encode())  # at once, and whole beside another rank's


def _stage(trainer: Any) -> str:
    folder = Path(trainer.log_dir).name
    return folder if folder in AFTER else "pruning"


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Attributes:
        point: The last line before it; `STARTING` for a process that has not said anything yet.
        seconds: Time since that line.
        order: Where in a run it is.
    """

    point: str
    seconds: float
    order: float


@dataclass
class Course:
    """One process, or those of one run together, and the points that rank 0 has passed."""

    folder: Path
    processes: int
    started: float = field(init=False)
    points: list[tuple[float, str]] = field(default_factory=list)
    ranks: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._log = (self.folder / "log.txt").open("ab")
        self._read = (self.folder / "log.txt").open("rb")
        self._read.seek(0, os.SEEK_END)
        ddp = ["--trainer.devices", str(self.processes), "--trainer.strategy", "ddp"] if self.processes > 1 else []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "--task.batch_size", str(ROWS // self.processes), *ddp],
            cwd=self.folder,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def look(self) -> None:
        """Read what was said since the last time."""
        place = self._read.tell()
        new = self._read.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read.seek(place + len(whole))
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith("@"):
                rank, pid, when, point = line[1:].split(" ", 3)
                self.ranks[int(rank)] = int(pid)
                if rank == "0":
                    self.points.append((float(when), point))

    def ended(self) -> bool:
        """Whether the first process has ended, after a last look."""
        over = self.process.poll() is not None
        self.look()
        return over

    def to_its_end(self) -> Course:
        """Wait for the end."""
        while not self.ended():
            time.sleep(0.05)
        return self

    def reached(self, moment: Moment) -> bool:
        """Wait for the moment; false if the process ends before."""
        while True:
            over = self.ended()
            when = self.started if moment.point == STARTING else None
            when = next((at for at, point in self.points if point == moment.point), when)
            if when is not None and time.monotonic() >= when + moment.seconds and not over:
                return True
            if over:
                return False
            time.sleep(0.001)

    def kill(self, rank: int | None) -> tuple[str, bool]:
        """SIGKILL to one rank, or to all where it is not there; says to whom, and whether no other stayed behind."""
        victim = -1 if rank is None else self.ranks.get(rank, -1)
        one = victim in self.alive()
        if one:
            os.kill(victim, signal.SIGKILL)
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
        end = time.monotonic() + END_OF_OTHERS
        while (left := self.alive()) and time.monotonic() < end:
            self.process.poll()
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return f"rank {rank}" if one else "all ranks" if self.processes > 1 else "the process", not left

    def alive(self) -> list[int]:
        """Processes of its session that are there, but for those that only wait to be reaped."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session, *_ = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many, for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many train together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    for processes in arguments.processes:
        found = kill_loop(processes, kills=arguments.kills, seed=arguments.seed)
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(results | {str(processes): found}, indent=1) + "\n")
        print(json.dumps(found, indent=1))


def kill_loop(processes: int, *, kills: int, seed: int) -> dict[str, Any]:
    """The counts for so many processes that train together."""
    generator, start, hits, runs = random.Random(seed), time.monotonic(), [], 0
    lost = left_over = orphans = 0
    largest = 0.0
    with tempfile.TemporaryDirectory() as scratch, Progress() as bar:
        task = bar.add_task(f"kills, processes: {processes}", total=kills)
        os.environ["HF_DATASETS_CACHE"] = f"{scratch}/cache"
        whole = make(Path(scratch) / "whole")
        course = Course(whole, processes).to_its_end()
        if course.process.returncode:
            sys.exit(f"the run that nobody killed has failed:\n{(whole / 'log.txt').read_text()[-5000:]}")
        expected, kinds = result(whole), moments(course, generator)
        while len(hits) < kills:
            folder = make(Path(scratch) / str(runs))
            runs += 1
            few = itertools.islice(kinds, min(KILLS_OF_A_RUN, kills - len(hits)))
            before = len(hits)
            for moment in sorted(few, key=lambda each: each.order):
                course = Course(folder, processes)
                if not course.reached(moment):
                    break
                rank = generator.choice((0, 1, None)) if processes > 1 else None
                at = course.points[-1][1] if course.points else STARTING
                killed, alone = course.kill(rank)
                orphans += not alone
                hits.append({"run": runs - 1, "at": at, "killed": killed})
                bar.advance(task)
                bar.console.print(f"run {runs - 1}: killed {killed}, {at}")
            else:
                course = Course(folder, processes).to_its_end()
            difference = compare(folder, expected, course.process.returncode)
            largest = max(largest, difference or 0.0)
            if difference is None or difference > (ROUNDING if processes > 1 else 0):
                lost += len(hits) - before
                print((folder / "log.txt").read_text()[-5000:])
            left_over += len(list((folder / "runs").rglob(".*")))
    return {
        **{"seed": seed, "runs": runs, "kills": len(hits), "survived": len(hits) - lost, "lost": lost},
        **{"processes": processes, "largest_difference": largest, "orphans": orphans, "left_over_files": left_over},
        **{"seconds": round(time.monotonic() - start), "date": datetime.now(UTC).date().isoformat(), "hits": hits},
    }


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def moments(course: Course, generator: random.Random) -> Iterator[Moment]:
    """Moments of a run without end: each kind in turn, then any time of that kind, as the whole run has passed it."""
    first = course.points[0][0]
    spans: dict[str, list[tuple[str, float, float]]] = {STARTING: [(STARTING, course.started, first)]}
    seen = set()
    ends = [when for when, _ in course.points[1:]] + [time.monotonic()]
    for (begin, point), end in zip(course.points, ends, strict=True):
        if point not in seen:
            seen.add(point)
            spans.setdefault(point.partition(",")[0].partition(" ")[0], []).append((point, begin, end))
    while True:
        for kind in generator.sample(sorted(spans), len(spans)):
            lengths = [end - begin for _, begin, end in spans[kind]]
            point, begin, end = generator.choices(spans[kind], lengths)[0]
            seconds = generator.uniform(0, end - begin)
            order = generator.uniform(first, ends[-1]) if kind == STARTING else begin + seconds
            yield Moment(point, seconds, order)


def result(folder: Path) -> dict[str, Tensor]:
    """Masks and weights that a run ended with: of its baseline, its last checkpoint, its compact model."""
    (report,) = folder.glob("runs/*/*/report.json")
    run = report.parent
    parts = {
        "baseline": load_file(run / "baseline" / "model" / "model.safetensors"),
        "checkpoint": torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"],
        "compact": load_file(run / "compact" / "model.safetensors"),
    }
    return {f"{part} {name}": value for part, values in parts.items() for name, value in values.items()}


def compare(folder: Path, expected: dict[str, Tensor], status: int) -> float | None:
    """The largest difference of a weight; `None` where the run has not ended, or masks or shapes are others."""
    if status or not list(folder.glob("runs/*/*/report.json")):
        return None
    found = result(folder)
    if found.keys() != expected.keys() or any(found[name].shape != expected[name].shape for name in found):
        return None
    exact = [name for name, value in expected.items() if not value.is_floating_point()]  # masks, and counts of steps
    if any(not torch.equal(found[name], expected[name]) for name in exact):
        return None
    weights = [name for name, value in expected.items() if name not in exact and value.numel()]
    return max(float((found[name] - expected[name]).abs().max()) for name in weights)


if __name__ == "__main__":
    main()
