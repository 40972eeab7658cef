"""The core is packages in layers: each may import those before it, no other, and no circle of modules is left.

Strategies and tasks may import the lower layers, and neither one another nor what runs them. Every import
counts: one inside a function, and one for type checkers only.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Mapping
from pathlib import Path

import pytest

import bplightning.errors
import bplightning.strategies
import bplightning.tasks

CORE = Path(bplightning.errors.__file__).parent
LAYERS = (
    "clone",
    "errors",
    "plugins",
    "io",
    "layout",
    "masks",
    "compaction",
    "contracts",
    "measuring",
    "reporting",
    "distillation",
    "training",
    "integrations",
    "exporting",
    "planning",
    "benchmarking",
    "stages",
    "runs",
    "cli",
    "testing",
)
PLUGINS = {
    "strategies": Path(bplightning.strategies.__file__).parent,
    "tasks": Path(bplightning.tasks.__file__).parent,
}
RUN_PLUGINS = {"integrations", "stages", "runs", "cli", "testing"}
"""Packages that strategies and tasks must not know: they are called by these."""
FRONT_DOORS = {"__init__", "__main__"}
"""They give out what lies below under short names, and nothing imports them."""


def modules(folder: Path) -> dict[str, str]:
    """Name of each module below `folder` to its text: ``layout.groups``, and ``layout`` for the package itself."""
    files = {file.relative_to(folder).with_suffix("").parts: file.read_text() for file in sorted(folder.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): text for parts, text in files.items()}


def everything() -> dict[str, str]:
    """The same of the core, and of the strategies and tasks as they are imported: ``strategies.hybrid``."""
    texts = modules(CORE)
    for package, folder in PLUGINS.items():
        for name, text in modules(folder).items():
            texts[package if name == "__init__" else f"{package}.{name}"] = text
    return texts


def imported(text: str, known: Mapping[str, str]) -> set[str]:
    """Names of our modules that a module's text imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            of = node.module or ""
            names = [
                f"{of}.{alias.name}" if f"{of}.{alias.name}".partition(".")[2] in known else of for alias in node.names
            ]
        else:
            continue
        found |= {name.partition(".")[2] for name in names if name.partition(".")[0] == "bplightning"}
    return found


def may_import(home: str) -> set[str]:
    """The packages that a package's modules may import, itself among them."""
    if home in PLUGINS:
        return {home, *LAYERS} - RUN_PLUGINS
    return set(LAYERS[: LAYERS.index(home) + 1])


def wrong_imports(texts: Mapping[str, str]) -> list[str]:
    """What breaks the rule, one line each."""
    wrong = []
    for name, text in texts.items():
        if name in FRONT_DOORS:
            continue
        home = name.partition(".")[0]
        for other in sorted(imported(text, texts)):
            if other.partition(".")[0] not in may_import(home):
                wrong.append(f"{name} imports {other or 'bplightning itself'}")
    return wrong


def circle(texts: Mapping[str, str]) -> list[str]:
    """Modules that import one another in a circle, or none; a package's `__init__` stands for what it gives out."""
    graph = {name: imported(text, texts) - {name} for name, text in texts.items() if name not in FRONT_DOORS}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_goes_upwards() -> None:
    assert wrong_imports(everything()) == []


def test_no_modules_import_one_another() -> None:
    assert circle(everything()) == []


def test_every_package_has_a_place_and_a_sentence() -> None:
    texts = modules(CORE)
    packages = {name.partition(".")[0] for name in texts}
    assert packages - FRONT_DOORS == set(LAYERS)
    assert all(ast.get_docstring(ast.parse(texts[name])) for name in LAYERS)


def test_the_guard_sees_what_goes_upwards_also_where_it_is_deferred() -> None:
    texts = everything()
    deferred = "def late():\n    from bplightning.training.module import PruningModule"
    typed = "if TYPE_CHECKING:\n    import bplightning.cli.verbs"
    for addition in (
        deferred,
        typed,
        "from bplightning.strategies.hybrid import Hybrid",
        "from bplightning import fit",
    ):
        assert wrong_imports({**texts, "layout.groups": f"{texts['layout.groups']}\n{addition}\n"}), addition


@pytest.mark.parametrize("plugin", ["strategies.shared.targets", "tasks.shared.data_task"])
def test_the_guard_sees_a_plugin_that_imports_what_it_must_not_know(plugin: str) -> None:
    texts = everything()
    other = "tasks.qa" if plugin.startswith("strategies") else "strategies.hybrid"
    for unknown in (*(f"{package}.any_module" for package in RUN_PLUGINS), other):
        changed = {**texts, plugin: f"{texts[plugin]}\ndef late():\n    import bplightning.{unknown}\n"}
        assert wrong_imports(changed) == [f"{plugin} imports {unknown}"]


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("layout.groups", "layout.prunable_layout"),
        ("strategies.l0", "strategies.cofi.gates"),
        ("tasks.shared.data_task", "tasks.shared.text_task"),
    ],
)
def test_the_guard_sees_a_circle(lower: str, upper: str) -> None:
    texts = everything()
    texts[lower] += f"\nfrom bplightning.{upper} import anything\n"
    assert {lower, upper} <= set(circle(texts))
