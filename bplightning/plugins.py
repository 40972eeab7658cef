"""Finding strategies and tasks: by the short name they are registered under, or by class path.

A package registers a plugin as an entry point, this one like anybody's::

    [project.entry-points."bplightning.strategies"]
    my-strategy = "my_package.my_file:MyStrategy"

A class path (``my_file.MyStrategy``) that somebody typed needs no registration, and finds files in the current folder.
One that a file names must be registered, of this package, or imported already: a file does not choose what is imported.
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


class UntrustedClassError(UserError):
    """A file names a class path that it has no say in.

    Args:
        class_path: The class path.
        kind: What the class is.
    """

    def __init__(self, class_path: str, kind: str = "class") -> None:
        shown = class_path[:200]
        super().__init__(
            f"a configuration names the {kind} {shown!r}, which is not registered, and a file does not choose what "
            f"code is imported: if you trust it, add --trust {shown} to the command; in Python, import "
            f"{shown.rpartition('.')[0]} first."
        )


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


def load(group: str, name_or_class_path: str, *, typed: bool = False) -> type:
    """The class behind a short name or a class path.

    Args:
        group: Entry-point group, `STRATEGIES` or `TASKS`.
        name_or_class_path: A registered name (``hybrid``) or an importable class (``my_file.MyStrategy``).
        typed: Whether the user typed it; a class path that was not must be trusted for another reason.

    Returns:
        The class.

    Raises:
        UserError: If the name is unknown or registered twice, what it stands for cannot be imported or is no class, or
            a class path was not typed and is not trusted.
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
    if typed:
        find_in_current_folder()
    elif not _is_trusted(name_or_class_path, module, attribute):
        raise UntrustedClassError(name_or_class_path, kind)
    return _import_class(kind, name_or_class_path, module, attribute)


def trust(class_paths: str) -> list[str]:
    """Import classes that the user trusts, which a configuration may then name.

    Args:
        class_paths: Class paths, separated by commas; empty for none.

    Returns:
        The class paths, and those under which the classes were defined.

    Raises:
        UserError: One cannot be imported, or is no class.
    """
    found = []
    for class_path in filter(None, (word.strip() for word in class_paths.split(","))):
        module, _, attribute = class_path.rpartition(".")
        if not module:
            raise UserError(f"--trust is {class_path!r}, which is no class path: give one such as my_file.MyStrategy.")
        find_in_current_folder()
        cls = _import_class("class", class_path, module, attribute)
        found += [class_path, f"{cls.__module__}.{cls.__qualname__}"]
    return found


def registered_packages() -> set[str]:
    """The top packages of all registered plugins, which somebody installed."""
    return {point.module.partition(".")[0] for group in GROUPS for point in available(group).values()}


def find_in_current_folder() -> None:
    """Let a typed ``my_file.MyStrategy`` be found in the current folder by an installed command, as by a script."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _is_trusted(class_path: str, module: str, attribute: str) -> bool:
    """Whether a class path that nobody typed may be imported: then nothing is, or what is installed as a plugin."""
    package = __name__.partition(".")[0]
    registered = {point.value.replace(":", ".") for group in GROUPS for point in available(group).values()}
    return (
        class_path in registered
        or class_path.startswith(f"{package}.")
        or inspect.isclass(getattr(sys.modules.get(module), attribute, None))
    )


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
