"""The core knows the contracts and no plugin: it imports where none is installed, and without pytest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from programs import Program

import bplightning.errors

CORE = Path(bplightning.errors.__file__).parent
IMPORT_CORE_WITHOUT_PLUGINS = """
import importlib, sys
assert "bplightning" not in sys.modules
sys.dont_write_bytecode = True
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("bplightning.strategies", "bplightning.tasks")):
            raise ImportError(f"{name} is a plugin")
        if name.startswith(("pytest", "_pytest")) and not self.tests:
            raise ImportError(f"{name} is for tests")

    tests = False

folder = sys.argv[1]
sys.path.insert(0, folder)
sys.meta_path.insert(0, Refuse())
for file in sorted(Path(folder, "bplightning").rglob("*.py")):
    name = ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
    if file.stem != "__main__" and not name.startswith("bplightning.testing"):
        module = importlib.import_module(name)
        found = getattr(module, "__file__", None)
        assert found and Path(found).parent == file.parent, f"{name} came from {found}"
        print(name)
Refuse.tests = True
importlib.import_module("bplightning.testing")
"""


def import_core(folder: Path) -> tuple[int, str]:
    """Import every module of the core in `folder`/bplightning, in a process where plugins cannot be imported."""
    program = Program(IMPORT_CORE_WITHOUT_PLUGINS, str(folder), cwd=folder)
    return program.end(), program.said


@pytest.fixture
def core_copy(tmp_path: Path) -> Path:
    shutil.copytree(CORE, tmp_path / "bplightning", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_core_imports_without_plugins(core_copy: Path) -> None:
    status, said = import_core(core_copy)
    assert status == 0, said
    assert {
        "bplightning.training.module",
        "bplightning.contracts.strategy",
        "bplightning.contracts.task",
        "bplightning.cli.program",
    } <= set(said.split())


@pytest.mark.parametrize(
    "line",
    [
        "from bplightning.strategies.hybrid import Hybrid",
        "import bplightning.tasks.qa",
        "from . import strategies",
        "import pytest",
    ],
)
def test_the_guard_sees_a_core_module_import_what_it_must_not(core_copy: Path, line: str) -> None:
    with (core_copy / "bplightning" / "errors.py").open("a") as errors:
        errors.write(f"\n{line}\n")
    status, said = import_core(core_copy)
    assert status != 0
    assert "is a plugin" in said or "is for tests" in said
