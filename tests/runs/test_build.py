"""A run is built from its configuration alone: no trainer, no command line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest
from pointing_task import PointingTask

from bplightning.errors import UserError
from bplightning.runs.build import build
from bplightning.strategies.hybrid import Hybrid

OPTIONS = {
    "strategy": "hybrid",
    "baseline": "train",
    "start": "baseline",
    "model": {"learning_rate": 1e-3},
    "distillation": {"teacher": "baseline"},
    "alignment": {"multiple_of": 8},
    "refill": {"max_epochs": 2},
}


@pytest.fixture
def configuration(tmp_path: Path) -> dict[str, Any]:
    return OPTIONS | {"task": {"class_path": "pointing_task.PointingTask", "init_args": {"model": str(tmp_path)}}}


def test_a_configuration_is_built_without_a_trainer(configuration: dict[str, Any]) -> None:
    run = build(configuration)
    assert isinstance(run.task, PointingTask)
    assert isinstance(run.module.strategy, Hybrid)
    assert run.module.learning_rate == 1e-3
    assert run.module.distillation.teacher == "baseline"
    asked = run.request
    assert (asked.baseline, asked.start, asked.quantize) == ("train", "baseline", None)
    assert (asked.alignment.multiple_of, asked.refill and asked.refill.max_epochs) == (8, 2)
    assert run.module._trainer is None
    assert build(configuration | {"refill": {"max_epochs": 0}}).request.refill is None


def test_building_imports_no_command_line() -> None:
    code = "import bplightning.runs.reading, sys; sys.exit('bplightning.cli' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


@pytest.mark.parametrize(
    "wrong", [{"old_option": 1}, {"start": "somewhere"}, {"trainer": {"max_steps": 3}}, {"strategy": "hybird"}]
)
def test_an_option_that_is_not_known_is_refused(configuration: dict[str, Any], wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        build(configuration | wrong)


def test_what_a_constructor_refuses_is_the_users_error(configuration: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^learning_rate is -1; it must be above 0"):
        build(configuration | {"model": {"learning_rate": -1}})


def test_a_class_that_is_imported_needs_no_registration(
    configuration: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from bplightning.strategies.hybrid import Hybrid\n\n\nclass Own(Hybrid):\n    pass\n"
    (tmp_path / "own_pruning.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "own_pruning", importlib.import_module("own_pruning"))
    run = build(configuration | {"strategy": {"class_path": "own_pruning.Own"}})
    assert type(run.module.strategy).__name__ == "Own"
