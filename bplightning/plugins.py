"""Finding strategies and tasks: by the short name they are registered under, or by class path.

A package registers a plugin as an entry point, this one like anybody's::

    [project.entry-points."bplightning.strategies"]
    my-strategy = "my_package.my_file:MyStrategy"

A class path (``my_file.MyStrategy``) needs no registration, and finds files in the current folder.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from itertools import accumulate
from pathlib import Path

from bplightning.errors import UserError, did_you_mean

STRATEGIES = "bplightning.strategies"
TASKS = "bplightning.tasks"
GROUPS = {STRATEGIES: "strategy", TASKS: "task"}
"""Entry-point group to what one of its members is called."""


def available(group: str) -> dict[str, EntryPoint]:
    """The registered plugins of a group, none of them imported yet.

    Args:
        group: Entry-point group, `STRATEGIES` or `TASKS`.

    Returns:
        Short name to entry point, sorted by name.
    """
    return {point.name: point for point in sorted(_registered(group, tuple(sys.path)), key=lambda point: point.name)}


@cache
def _registered(group: str, path: tuple[str, ...]) -> EntryPoints:
    """The entry points of a group; found by reading the metadata of everything installed, once for each `sys.path`."""
    return entry_points(group=group)


def load(group: str, name_or_class_path: str) -> type:
    """The class behind a short name or a class path.

    Args:
        group: Entry-point group, `STRATEGIES` or `TASKS`.
        name_or_class_path: A registered name (``hybrid``) or an importable class (``my_file.MyStrategy``).

    Returns:
        The class.

    Raises:
        UserError: If the name is unknown or registered twice, or what it stands for cannot be imported or is no class.
    """
    kind = GROUPS[group]
    points = {point.value: point for point in _registered(group, tuple(sys.path)) if point.name == name_or_class_path}
    if len(points) > 1:
        raise UserError(
            f"{kind} {name_or_class_path!r} is registered {len(points)} times; "
            f"give a class path instead: {', '.join(sorted(value.replace(':', '.') for value in points))}"
        )
    for point in points.values():
        return _import_class(kind, name_or_class_path, point.module, point.attr)
    module, _, attribute = name_or_class_path.rpartition(".")
    if not module:
        known = ", ".join(available(group)) or "none (is the package installed?)"
        raise UserError(
            f"no {kind} is called {name_or_class_path!r}; there are: {known}; "
            f"a class path such as my_file.My{kind.title()} works too"
            f"{did_you_mean(name_or_class_path, available(group))}"
        )
    here = str(Path.cwd())
    if here not in sys.path:  # so that `my_file.MyStrategy` works for an installed command as it does for a script
        sys.path.append(here)
    return _import_class(kind, name_or_class_path, module, attribute)


def name_of(cls: type) -> str:
    """The short name a class is registered under, or else its class name in kebab case.

    >>> class SoftMovementL0: ...
    >>> name_of(SoftMovementL0)
    'soft-movement-l0'
    """
    value = f"{cls.__module__}:{cls.__qualname__}"
    for group in GROUPS:
        for name, point in available(group).items():
            if point.value == value:
                return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def summary(group: str) -> dict[str, str]:
    """A line about each registered plugin: the first of its docstring, or why it is broken.

    The docstring is read from the plugin's file, which costs no import of torch; only where it is not there is the
    plugin imported.

    Args:
        group: Entry-point group, `STRATEGIES` or `TASKS`.

    Returns:
        Short name to one line.
    """
    lines = {}
    for name, point in available(group).items():
        try:
            documented = _docstring_in_file(point) or inspect.getdoc(load(group, name)) or ""
            lines[name] = documented.partition("\n")[0]
        except UserError as error:
            lines[name] = f"BROKEN: {error}"
    return lines


def _docstring_in_file(point: EntryPoint) -> str | None:
    """The docstring of a plugin's class as its file has it; `None` where the class is not defined in that file."""
    package, *below = point.module.split(".")
    spec: ModuleSpec | None = None
    for name in accumulate(below, "{}.{}".format, initial=package):
        path = None if name == package else (spec and spec.submodule_search_locations) or []
        # As an import asks, but nothing is imported; `importlib.util.find_spec` would import the packages around it.
        asked = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((found for found in asked if found is not None), None)
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # it is no text, or no Python: importing it says what is wrong
        return None
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == point.attr)
    return next((ast.get_docstring(node) for node in classes), None)


def _import_class(kind: str, asked_for: str, module: str, attribute: str) -> type:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a third party's module does on import must not break the others
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{kind} {asked_for!r} cannot be imported from {module!r}: {type(error).__name__}: {reason}"
        ) from error
    if not inspect.isclass(found):
        raise UserError(f"{kind} {asked_for!r} is a {type(found).__name__}, and must be a class")
    return found
