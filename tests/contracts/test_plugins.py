"""Discovery by short name and by class path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bplightning import plugins
from bplightning.errors import UserError
from bplightning.plugins import STRATEGIES, TASKS


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that registers a sound strategy, a broken one, something that is no class, a name twice."""
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[bplightning.strategies]\n"
        "sound = third_party_sound:Sound\n"
        "broken = third_party_broken:Broken\n"
        "function = third_party_sound:function\n"
        "hybrid = third_party_sound:Sound\n"
    )
    (tmp_path / "third_party_sound.py").write_text(
        'class Sound:\n    """Sounds right.\n\n    At length."""\n\n\ndef function(): ...\n'
    )
    (tmp_path / "third_party_broken.py").write_text("raise RuntimeError('compiled for another torch\\nand so on')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_this_packages_own_plugins_are_found() -> None:
    assert {"dense", "hybrid", "soft-movement"} <= plugins.available(STRATEGIES).keys()
    assert "qa" in plugins.available(TASKS)


def test_names_are_listed_in_order() -> None:
    assert list(plugins.available(STRATEGIES)) == sorted(plugins.available(STRATEGIES))


def test_short_name_and_class_path_are_the_same_class() -> None:
    by_name = plugins.load(STRATEGIES, "soft-movement")
    assert by_name is plugins.load(STRATEGIES, "bplightning.strategies.soft_movement.SoftMovement")


def test_class_path_in_current_folder_needs_no_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file_of_a_user.py").write_text("class MyStrategy: ...\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # as for an installed command
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    plugins.load(STRATEGIES, "hybrid")
    assert sys.path == path  # a registered name has nothing to look for there
    assert plugins.load(STRATEGIES, "file_of_a_user.MyStrategy", typed=True).__name__ == "MyStrategy"


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no strategy is called 'hybird'; there are: .*hybrid.*my_file\.MyStrategy"):
        plugins.load(STRATEGIES, "hybird")
    with pytest.raises(UserError, match=r"no task is called 'hybrid'; there are: .*qa.*my_file\.MyTask"):
        plugins.load(TASKS, "hybrid")


def test_unknown_class_path_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"'no_such_file\.MyStrategy' cannot be imported .*No module named"):
        plugins.load(STRATEGIES, "no_such_file.MyStrategy", typed=True)
    with pytest.raises(UserError, match=r"'bplightning\.errors\.Nope' cannot be imported .*no attribute 'Nope'"):
        plugins.load(STRATEGIES, "bplightning.errors.Nope")


@pytest.mark.usefixtures("third_party")
def test_a_broken_plugin_breaks_only_itself() -> None:
    assert "broken" in plugins.available(STRATEGIES)
    assert plugins.load(STRATEGIES, "sound").__name__ == "Sound"
    with pytest.raises(UserError, match=r"strategy 'broken' cannot .*RuntimeError: compiled for another torch$"):
        plugins.load(STRATEGIES, "broken")
    lines = plugins.summary(STRATEGIES)
    assert lines["sound"] == "Sounds right."
    assert lines["broken"].startswith("BROKEN: strategy 'broken' cannot be imported")


@pytest.mark.usefixtures("third_party")
def test_a_plugin_is_a_class() -> None:
    with pytest.raises(UserError, match="strategy 'function' is a function, and must be a class"):
        plugins.load(STRATEGIES, "function")


@pytest.mark.usefixtures("third_party")
def test_a_name_registered_twice_is_refused_not_guessed() -> None:
    with pytest.raises(UserError, match=r"'hybrid' is registered 2 times; give a class path.*third_party_sound\.Sound"):
        plugins.load(STRATEGIES, "hybrid")


def test_name_of() -> None:
    class MyL0Strategy: ...

    class HTTPTask: ...

    assert plugins.name_of(plugins.load(TASKS, "qa")) == "qa"
    assert plugins.name_of(MyL0Strategy) == "my-l0-strategy"
    assert plugins.name_of(HTTPTask) == "http-task"
