"""The folder of a run: its files by name, the model that it stands for, and its configuration as it was written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bplightning.errors import UserError

CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.json"
UNFINISHED_FILE = "unfinished.json"
COMPACT = "compact"
BASELINE = "baseline"
CHECKPOINTS = "checkpoints"
PATIENCE = 8.0
"""Seconds to wait for a run's folder: processes that load data outlive one that was killed by a few."""


@dataclass(frozen=True)
class RunFolder:
    """What lies where in the folder of a run, or of a stage that has one of its own.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration that repeats the run."""
        return self.path / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def baseline(self) -> Path:
        """Folder of the stage that trains the dense baseline."""
        return self.path / BASELINE

    @property
    def baseline_model(self) -> Path:
        """The dense baseline that the run made."""
        return self.baseline / "model"

    @property
    def compact(self) -> Path:
        """The compact model."""
        return self.path / COMPACT

    @property
    def refill(self) -> Path:
        """Folder of the stage that fine-tunes the compact model."""
        return self.path / "refill"

    @property
    def report(self) -> Path:
        """The report, with which a run has ended."""
        return self.path / REPORT_FILE

    @property
    def unfinished(self) -> Path:
        """What is known of a report that is not written yet."""
        return self.path / UNFINISHED_FILE


def find_model(model: str | Path) -> Path:
    """The folder or the checkpoint file that `model` stands for.

    Args:
        model: A model's folder, dense or compact; a run's folder, which stands for its ``compact/``, or else for its
            newest checkpoint; or a checkpoint file in a run's folder.

    Returns:
        A model's folder, a run's folder without a compact model, or a checkpoint file.

    Raises:
        UserError: It is none of these.
    """
    path = Path(model)
    if (path / "config.json").is_file() or (path.is_file() and RunFolder(run_of(path)).config.is_file()):
        return path
    run = RunFolder(path)
    if (run.compact / "config.json").is_file():
        return run.compact
    if run.config.is_file():
        return path
    found = "exists, but is not a model folder, run folder or checkpoint" if path.exists() else "does not exist"
    raise UserError(
        f"the model {str(path)!r} {found}: give a model's folder (with config.json), a run's folder such as "
        "runs/qa-hybrid/version_0, or a file in its checkpoints/."
    )


def run_of(checkpoint: Path) -> Path:
    """Folder of the run that a checkpoint file belongs to."""
    return checkpoint.absolute().parent.parent


@contextmanager
def settings_of(run: Path) -> Iterator[dict[str, Any]]:
    """What a run's ``config.yaml`` says, to be read in a ``with``: what has no place in it there is the user's to mend.

    Args:
        run: The run's folder, with ``config.yaml``.

    Raises:
        UserError: The folder has no configuration, or it is damaged, or of another version.
    """
    config = RunFolder(run).config
    if not config.is_file():
        raise UserError(f"{str(run)!r} has no config.yaml: give the folder of a run, such as runs/qa-hybrid/version_0.")
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise unreadable(config, error) from error
    try:
        yield content
    except (AttributeError, LookupError, TypeError) as error:
        raise unreadable(config, error) from error


def unreadable(config: Path, error: Exception) -> UserError:
    """The error of a configuration that cannot be read."""
    return UserError(
        f"{str(config)!r} cannot be read ({' '.join(str(error).split())}): it is damaged, or of a version that knows "
        "other options; rename or remove those."
    )


def baseline_of(run: Path) -> Path | None:
    """Folder of the dense model that a run compares with, where there is one."""
    with settings_of(run) as settings:
        named = Path(settings.get("baseline") or "none")
    for folder in (RunFolder(run).baseline_model, named):
        if (folder / "config.json").is_file():
            return folder
    return None


@contextmanager
def worked_on(run: Path) -> Iterator[None]:
    """Keep other processes from working on a run while this one does; the system lets go of it when this one ends.

    A folder in which nothing was written is removed, as of a run that was refused before it began.

    Args:
        run: The run's folder. Where it does not exist, or its file system has no locks, nothing is kept.

    Raises:
        UserError: Another process is working on it.
    """
    lock = _lock(run, patience=PATIENCE)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
        with suppress(OSError):
            run.rmdir()  # which a folder with a file in it refuses


def require_none_begins(before: Path) -> None:
    """Refuse to begin a run while another process begins one next to it, as nobody knows yet whether they are the same.

    Args:
        before: Folder ``version_N`` of the run to begin; only those of lower numbers count.

    Raises:
        UserError: Another process is beginning one.
    """
    numbered = {int(name): run for run in before.parent.glob("version_*") if (name := run.name[8:]).isdecimal()}
    for number, run in numbered.items():
        if number < int(before.name[8:]) and not (run / "config.yaml").is_file():
            lock = _lock(run, patience=0)
            if lock is not None:
                os.close(lock)


def _lock(folder: Path, patience: float) -> int | None:
    """Lock a folder, for which it waits at most `patience` seconds; close what is returned to unlock it."""
    try:
        import fcntl  # not every system has it

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"another process is working on the run {str(folder)!r}: wait for its end, or stop it, and repeat the "
            "command to continue it; without --resume the command begins a new run."
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
