"""The folder of a run: its files by name, the model that it stands for, and its configuration as it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bplightning.errors import UserError
from bplightning.io.bounds import read_yaml
from bplightning.io.locks import PATIENCE, locked

CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.json"
UNFINISHED_FILE = "unfinished.json"
INT8_STATIC_FILE = "int8-static.onnx"
Made = TypeVar("Made")
COMPACT = "compact"
BASELINE = "baseline"
CHECKPOINTS = "checkpoints"


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
    def int8_static(self) -> Path:
        """The compact model in 8 bits, with ranges measured on training examples, where the run was asked for it."""
        return self.path / INT8_STATIC_FILE

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


def settings_of(run: Path) -> dict[str, Any]:
    """What a run's ``config.yaml`` says, option to value; whether the values make sense is for the reader to check.

    Args:
        run: The run's folder, with ``config.yaml``.

    Raises:
        UserError: The folder has no configuration, or it is damaged.
    """
    config = RunFolder(run).config
    if not config.is_file():
        raise UserError(f"{str(run)!r} has no config.yaml: give the folder of a run, such as runs/qa-hybrid/version_0.")
    try:
        content = read_yaml(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise unreadable(config, error) from error
    if not isinstance(content, dict):
        raise unreadable(config, f"it holds a {type(content).__name__}, not options by name")
    return content


def section_as(run: Path, name: str, cls: type[Made]) -> Made:
    """What a section of a run's ``config.yaml`` describes; where it is missing, what `cls` is by default.

    Args:
        run: The run's folder, with ``config.yaml``.
        name: The section.
        cls: What takes the section's options.

    Raises:
        UserError: As `settings_of` has it, or the section has options that `cls` does not know, or a value is refused.
    """
    section = settings_of(run).get(name) or {}
    try:
        return cls(**section)
    except TypeError as error:
        raise unreadable(RunFolder(run).config, error) from error


def unreadable(config: Path, error: Exception | str) -> UserError:
    """The error of a configuration that cannot be read, by what is wrong with it."""
    return UserError(
        f"{str(config)!r} cannot be read ({' '.join(str(error).split())}): it is damaged, or of a version that knows "
        "other options; rename or remove those."
    )


def baseline_of(run: Path) -> Path | None:
    """Folder of the dense model that a run compares with, where there is one.

    Args:
        run: The run's folder, with ``config.yaml``.

    Raises:
        UserError: As `settings_of` has it, or the baseline that is named there can be none.
    """
    named = settings_of(run).get("baseline") or "none"
    if not isinstance(named, str):
        raise unreadable(RunFolder(run).config, f"baseline is {named!r}, and must be a word or a folder")
    for folder in (RunFolder(run).baseline_model, Path(named)):
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


@contextmanager
def one_at_a_time(runs: Path) -> Iterator[None]:
    """Let one process at a time look which runs are there, and begin one.

    Args:
        runs: Folder of the runs.

    Raises:
        UserError: Another process takes too long for it.
    """
    lock = _lock(runs, patience=PATIENCE)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def require_none_begins(own: Path) -> None:
    """Refuse to begin a run while another process begins one next to it, as nobody knows yet whether they are the same.

    Args:
        own: Folder of the run to begin.

    Raises:
        UserError: Another process is beginning one.
    """
    for run in own.parent.glob("version_*"):
        if run == own or RunFolder(run).config.is_file():
            continue
        lock = _lock(run, patience=0)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, patience: float) -> int | None:
    """Lock a folder, for which it waits at most `patience` seconds; close what is returned to unlock it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    is_locked = locked(descriptor, patience=patience)
    if is_locked:
        return descriptor
    os.close(descriptor)
    if is_locked is None:
        return None
    raise UserError(
        f"another process is working on the run {str(folder)!r}: wait for its end, or stop it, and repeat the command "
        "to continue it; without --resume the command begins a new run."
    )
