"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import bplightning.errors
import bplightning.strategies
import bplightning.tasks


def modules() -> list[str]:
    """Names of the modules that hold an example, in packages of any depth."""
    found = []
    for module in (bplightning.errors, bplightning.strategies, bplightning.tasks):
        folder = Path(module.__file__ or "").parent
        home = "bplightning" if module is bplightning.errors else module.__name__
        for file in sorted(folder.rglob("*.py")):
            if file.stem != "__main__" and ">>> " in file.read_text():
                inside = file.relative_to(folder).with_suffix("").parts
                found.append(".".join((home, *inside)).removesuffix(".__init__"))
    return found


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_examples_are_found_in_every_layer() -> None:
    assert {name.rpartition(".")[0] for name in MODULES} >= {
        *("bplightning", "bplightning.masks", "bplightning.cli"),
        *("bplightning.strategies", "bplightning.strategies.shared", "bplightning.tasks.shared"),
    }
    assert len(MODULES) > 40
