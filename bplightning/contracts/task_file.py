"""Which task a saved model is for, and with which settings: ``task.json`` beside its weights."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.plugins import TASKS, available, load

TASK_FILE = "task.json"
TASK_FILE_VERSION = 1
"""Raised by one whenever the file changes its form."""


def save_task(task: Task, folder: str | Path) -> None:
    """Write which task a model is for, so that `predict` knows, and what else the task has to write.

    Args:
        task: The task; the values of its `saved_settings` are written.
        folder: Folder of the saved model.
    """
    task.write_files(Path(folder))
    content = {
        "version": TASK_FILE_VERSION,
        "task": _recorded_name(type(task)),
        "settings": {name: getattr(task, name) for name in task.saved_settings},
    }
    (Path(folder) / TASK_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_task(folder: str | Path, override: str | None = None, **settings: Any) -> Task:
    """The task that a saved model is for.

    A folder may come from anywhere, so it chooses among the installed tasks only: a class path in it is imported when
    `override` says the same, and of its settings only those are taken that the task itself saves.

    Args:
        folder: Folder of the saved model; the task's `model`.
        override: Short name or class path of the task, in place of the recorded one.
        **settings: Further constructor arguments, which win over the recorded ones.

    Returns:
        The task.

    Raises:
        UserError: The folder does not say its task and neither does `override`, the file is damaged, or the task is
            not available or takes no such settings.
    """
    file = Path(folder) / TASK_FILE
    name, recorded = _read(file)
    if override is None:
        _require_installed(name, file)
    chosen = override or name
    assert chosen is not None
    cls = load(TASKS, chosen, typed=override is not None)
    if not issubclass(cls, Task):
        raise UserError(f"task {chosen!r} must derive from {Task.__module__}.Task, and {cls.__qualname__} does not.")
    if "model" not in inspect.signature(cls).parameters:
        raise UserError(f"task {chosen!r} cannot be built for a saved model: its constructor has no argument 'model'.")
    if name != _recorded_name(cls):
        recorded = {}  # the settings of another task
    unknown = sorted(set(recorded) - set(cls.saved_settings))
    if unknown:
        raise UserError(
            f"{str(file)!r} has settings {repr(unknown)[:80]}, which task {chosen!r} does not save: the file is of "
            "another version of the task; install that one, or take them out."
        )
    hints = typing.get_type_hints(cls.__init__)
    for setting, value in recorded.items():
        kinds = _kinds(hints.get(setting, Any))
        if kinds and type(value) not in kinds:
            names = " or ".join(sorted(kind.__name__ for kind in kinds))
            raise _damaged(file, f"has setting {setting} {repr(value)[:80]}, and task {chosen!r} takes {names}")
    try:
        return cls(model=str(folder), **(recorded | settings))
    except TypeError as error:
        raise UserError(
            f"the settings in {str(file)!r} do not fit task {chosen!r} ({error}): mend the file."
        ) from error


def _kinds(hint: Any) -> set[type]:
    """What of JSON a constructor's argument may be; empty where its annotation does not say."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [_kinds(each) for each in typing.get_args(hint)]
        return set().union(*inner) if all(inner) else set()
    if typing.get_origin(hint) is typing.Literal:
        return {type(each) for each in typing.get_args(hint)}
    kind = typing.get_origin(hint) or hint
    kinds = {Mapping: dict, Sequence: list}
    kind = kinds.get(kind, kind)
    return {float, int} if kind is float else {kind} if kind in (int, bool, str, list, dict, types.NoneType) else set()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _recorded_name(cls: type[Task]) -> str:
    """The short name a class is registered under, or else its class path."""
    value = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, point in available(TASKS).items() if point.value == value), value.replace(":", "."))


def _require_installed(name: str | None, file: Path) -> None:
    known = ", ".join(available(TASKS)) or "none"
    if name is None:
        raise UserError(
            f"{str(file.parent)!r} does not say what its model is for (it has no {TASK_FILE}): name the task with "
            f"--task NAME, from Python task='NAME'; there are: {known}."
        )
    if name not in available(TASKS):
        name = name[:80]
        raise UserError(
            f"{str(file)!r} names the task {name!r}, which is not among those installed ({known}), and a file does "
            f"not choose what code is imported: if you have that task and trust it, give --task {name}, from Python "
            f"task={name!r}."
        )


def _read(file: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and settings as the file has them, checked; no name where there is no file."""
    try:
        content = json.loads(file.read_bytes(), parse_constant=_no_number)
    except FileNotFoundError:
        return None, {}
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"is not valid JSON ({error})") from error
    if not isinstance(content, dict) or content.get("version") != TASK_FILE_VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise _damaged(
            file, f"has version {repr(version)[:80]} where this bplightning reads version {TASK_FILE_VERSION}"
        )
    name, settings = content.get("task"), content.get("settings", {})
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise _damaged(
            file, f"must hold a task's name and its settings; it has {repr(name)[:80]} and {repr(settings)[:80]}"
        )
    return name, settings


def _damaged(file: Path, rule: str) -> UserError:
    return UserError(f"{str(file)!r} {rule}: save the model again, or remove the file and name the task with --task.")
