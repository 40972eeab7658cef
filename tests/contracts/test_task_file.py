"""Which task a saved model is for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pointing_task import PointingTask
from tiny_task import TinyTask

from bplightning.contracts.task_file import load_task, save_task
from bplightning.errors import UserError

CLASS_PATH = "pointing_task.PointingTask"


@pytest.fixture
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is that of an installed package, under the name ``pointing``."""
    info = tmp_path / "site" / "pointing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pointing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bplightning.tasks]\npointing = pointing_task:PointingTask\n")
    monkeypatch.syspath_prepend(info.parent)


@pytest.mark.usefixtures("_registered")
def test_a_registered_task_comes_back_with_its_settings(tmp_path: Path) -> None:
    save_task(PointingTask(str(tmp_path), offset=4, eval_batch_size=2), tmp_path)
    written = json.loads((tmp_path / "task.json").read_text())
    assert written == {"version": 1, "task": "pointing", "settings": {"offset": 4}}
    task = load_task(tmp_path)
    assert isinstance(task, PointingTask)
    assert (task.model, task.offset, task.eval_batch_size) == (str(tmp_path), 4, 8)
    again = load_task(tmp_path, offset=5, eval_batch_size=3)
    assert isinstance(again, PointingTask)
    assert (again.offset, again.eval_batch_size) == (5, 3)


def test_a_file_does_not_choose_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "malicious.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "task.json").write_text(json.dumps({"version": 1, "task": "malicious.Task", "settings": {}}))
    with pytest.raises(UserError, match=r"names the task 'malicious\.Task', .* give --task malicious\.Task"):
        load_task(tmp_path)
    assert "malicious" not in sys.modules


def test_an_unregistered_task_comes_back_where_it_is_asked_for(tmp_path: Path) -> None:
    save_task(PointingTask(str(tmp_path), offset=4), tmp_path)
    assert json.loads((tmp_path / "task.json").read_text())["task"] == CLASS_PATH
    task = load_task(tmp_path, CLASS_PATH)
    assert isinstance(task, PointingTask)
    assert task.offset == 4


def test_settings_of_another_task_are_left_aside(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"version": 1, "task": "qa", "settings": {"offset": 4}}))
    task = load_task(tmp_path, CLASS_PATH)
    assert isinstance(task, PointingTask)
    assert task.offset == 0


def test_a_folder_that_does_not_say_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no task\.json\): name the task with --task NAME, .*there are: .*qa"):
        load_task(tmp_path)
    assert isinstance(load_task(tmp_path, CLASS_PATH), PointingTask)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"task\.json' is not valid JSON"),
        ("[]", "has version None where this bplightning reads version 1"),
        ('{"version": 2}', "has version 2 where this bplightning reads version 1"),
        ('{"version": 1, "task": 3}', "must hold a task's name and its settings; it has 3"),
        ('{"version": 1, "task": "pointing_task.PointingTask", "settings": [1]}', r"must hold .* and \[1\]: save the"),
        (
            '{"version": 1, "task": "pointing_task.PointingTask", "settings": {"eval_batch_size": 2}}',
            r"has settings \['eval_batch_size'\], which task .* does not save",
        ),
        (
            '{"version": 1, "task": "pointing_task.PointingTask", "settings": {"offset": "x"}}',
            "has setting offset 'x', and task 'pointing_task.PointingTask' takes int: save the model again",
        ),
        ("[" * 100_000, r"task\.json' is not valid JSON"),
        ('{"version": 1, "task": "a", "settings": NaN}', r"is not valid JSON \(NaN is no number\)"),
        ('{"version": 1, "task": "pointing_task.PointingTask", "settings": {"offset": -1}}', "offset is -1; it must"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_task(tmp_path, CLASS_PATH)


def test_what_is_no_task_for_a_saved_model_is_refused(tmp_path: Path) -> None:
    assert issubclass(PointingTask, TinyTask)
    with pytest.raises(UserError, match=r"task 'tiny_task\.TinyTask' cannot be built .* no argument 'model'"):
        load_task(tmp_path, "tiny_task.TinyTask")
    with pytest.raises(UserError, match=r"task 'pathlib\.Path' must derive from bplightning\.contracts\.task\.Task"):
        load_task(tmp_path, "pathlib.Path")
