"""The core is packages in layers: each may import those before it, no other, and no circle of modules is left.

Every import counts: one inside a function, and one for type checkers only.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Mapping
from pathlib import Path

import bplightning.errors

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
FRONT_DOORS = {"__init__", "__main__"}
"""They give out what lies below under short names, and nothing imports them."""


def modules(folder: Path) -> dict[str, str]:
    """Name of each module below `folder` to its text: ``layout.groups``, and ``layout`` for the package itself."""
    files = {file.relative_to(folder).with_suffix("").parts: file.read_text() for file in sorted(folder.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): text for parts, text in files.items()}


def imported(text: str, known: Mapping[str, str]) -> set[str]:
    """Names of the core's modules that a module's text imports."""
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


def wrong_imports(texts: Mapping[str, str]) -> list[str]:
    """What breaks the rule, one line each."""
    wrong = []
    for name, text in texts.items():
        if name in FRONT_DOORS:
            continue
        home = name.partition(".")[0]
        for other in sorted(imported(text, texts)):
            package = other.partition(".")[0]
            if package not in LAYERS or LAYERS.index(package) > LAYERS.index(home):
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
    assert wrong_imports(modules(CORE)) == []


def test_no_modules_import_one_another() -> None:
    assert circle(modules(CORE)) == []


def test_every_package_has_a_place_and_a_sentence() -> None:
    texts = modules(CORE)
    packages = {name.partition(".")[0] for name in texts}
    assert packages - FRONT_DOORS == set(LAYERS)
    assert all(ast.get_docstring(ast.parse(texts[name])) for name in LAYERS)


def test_the_guard_sees_what_goes_upwards_also_where_it_is_deferred() -> None:
    texts = modules(CORE)
    deferred = "def late():\n    from bplightning.training.module import PruningModule"
    typed = "if TYPE_CHECKING:\n    import bplightning.cli.verbs"
    for addition in (
        deferred,
        typed,
        "from bplightning.strategies.hybrid import Hybrid",
        "from bplightning import fit",
    ):
        assert wrong_imports({**texts, "layout.groups": f"{texts['layout.groups']}\n{addition}\n"}), addition


def test_the_guard_sees_a_circle() -> None:
    texts = modules(CORE)
    texts["layout.groups"] += "\nfrom bplightning.layout.prunable_layout import PrunableLayout\n"
    assert {"layout.groups", "layout.prunable_layout"} <= set(circle(texts))
