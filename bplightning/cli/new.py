"""The verb `new`: a plugin package to begin from, copied from the worked examples under a name of one's own.

The examples in `examples/` are the templates; an installed bplightning holds them as data (`bplightning.examples`).
Each spells its own name in three ways, and in no other: ``taylor-pruning``, ``taylor_pruning`` and ``TaylorPruning``.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from bplightning.errors import UserError
from bplightning.plugins import STRATEGIES, TASKS, available


class Template(NamedTuple):
    """An example that is copied.

    Attributes:
        group: Entry-point group of the plugin.
        name: Its name, in kebab case.
        module: What is imported of it, a module or a package, with its name in snake case.
        files: Its files.
    """

    group: str
    name: str
    module: str
    files: tuple[str, ...]


TEMPLATES = {
    "strategy": Template(
        STRATEGIES,
        "taylor-pruning",
        "taylor_pruning",
        ("README.md", "pyproject.toml", "taylor_pruning.py", "test_taylor_pruning.py"),
    ),
    "task": Template(
        TASKS,
        "star-rating",
        "bplightning_star_rating",
        (
            "README.md",
            "pyproject.toml",
            "test_star_rating.py",
            "bplightning_star_rating/__init__.py",
            "bplightning_star_rating/reviews.jsonl",
            "bplightning_star_rating/star_rating.py",
            "bplightning_star_rating/star_rating.yaml",
        ),
    ),
}


def new(kind: Literal["strategy", "task"], name: str) -> None:
    """Write a plugin package to begin from: a worked strategy or task, with its tests and a README.

    Args:
        kind: strategy or task.
        name: What the plugin is called on the command line, such as my-strategy: lower-case words with dashes. The
            folder has this name, too, and is made here.
    """
    template = TEMPLATES[kind]
    folder = Path(name)
    _require_usable(kind, name, module=_renamed(template.module, template.name, name))
    for file, text in files_of(kind, name).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    sys.stdout.write(
        f"Wrote {name}/, a {kind} that works as it stands; its README.md says how to make it your own.\n\n"
        f"    cd {name}\n    python -m pytest\n    pip install -e .\n    bplightning fit --{kind} {name}\n"
    )


def files_of(kind: str, name: str) -> dict[str, str]:
    """The files of a package under a name: path to text.

    Args:
        kind: ``strategy`` or ``task``.
        name: The plugin's name, in kebab case.
    """
    template, source = TEMPLATES[kind], _source(kind)
    return {
        _renamed(file, template.name, name): _renamed((source / file).read_text(encoding="utf-8"), template.name, name)
        for file in template.files
    }


def _source(kind: str) -> Path:
    """The folder of the example."""
    spec = find_spec(f"bplightning.examples.custom_{kind}")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise UserError(
            f"this installation of bplightning lacks the example of a {kind} that `new` copies: install it again."
        )
    return Path(folders[0])


def _renamed(text: str, old: str, new: str) -> str:
    """A text with one name in place of another, in all three spellings.

    >>> _renamed("class StarRating: ...  # star_rating.py, for --task star-rating", "star-rating", "my-task")
    'class MyTask: ...  # my_task.py, for --task my-task'
    """
    for spelled in (str, _snake, _camel):
        text = text.replace(spelled(old), spelled(new))
    return text


def _snake(name: str) -> str:
    return name.replace("-", "_")


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))


def _require_usable(kind: str, name: str, *, module: str) -> None:
    """Refuse a name that cannot be a plugin's, or is taken.

    Raises:
        UserError: It is one.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or any(map(keyword.iskeyword, (module, _camel(name)))):
        raise UserError(
            f"the name {name!r} cannot be a {kind}'s: take lower-case words with dashes, such as my-{kind}, that "
            "make a Python module's name."
        )
    if (point := available(TEMPLATES[kind].group).get(name)) is not None:
        raise UserError(f"{kind} {name!r} is registered already, as {point.value}: choose another name.")
    if Path(name).exists() or Path(name).is_symlink():
        raise UserError(f"{name!r} exists in this folder already: choose another name, or go to another folder.")
    if find_spec(module) is not None:
        raise UserError(f"{name!r} would be the Python module {module!r}, which exists already: choose another name.")
