"""A plugin and its options, in arguments as they are typed and in values as YAML gives them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from bplightning.io.bounds import read_yaml


def class_path_of(value: Any) -> str | None:
    """The plugin's name or class path, in a value as YAML gives it."""
    found = value.get("class_path") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def options_of(value: Any) -> dict[str, Any]:
    """The plugin's options, in a value as YAML gives it."""
    found = value.get("init_args") if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def typed_options(args: Sequence[str], key: str) -> dict[str, Any]:
    """A plugin's options among arguments.

    >>> typed_options(["--strategy.target.flops", "0.5", "--strategy.init_args.guide=none", "--seed", "1"], "strategy")
    {'target.flops': 0.5, 'guide': 'none'}
    """
    found: dict[str, Any] = {}
    for item, following in pairwise([*args, ""]):
        option, equals, value = item.partition("=")
        if option.startswith(f"--{key}."):
            name = option.removeprefix(f"--{key}.").removeprefix("init_args.").removesuffix("+")
            try:
                found[name] = yaml.safe_load(value if equals else following)
            except yaml.YAMLError:
                found[name] = value if equals else following
    return found


def with_nulls(args: Sequence[str], key: str) -> list[str]:
    """Arguments in which the `null` of an option of a plugin's section is a part of the section.

    jsonargparse hands it to the section's own parser as the word "None", which is no number.

    >>> with_nulls(["--strategy.target.density", "null", "--strategy.target.flops=0.5"], "strategy")
    ['--strategy.target={density: null}', '--strategy.target.flops=0.5']
    """
    found: list[str] = []
    remaining = list(reversed(args))
    while remaining:
        item = remaining.pop()
        option, equals, value = item.partition("=")
        section, _, field = option.removeprefix(f"--{key}.").removeprefix("init_args.").partition(".")
        if not equals and remaining:
            value = remaining[-1]
        if option.startswith(f"--{key}.") and field and value == "null":
            found.append(f"--{key}.{section}={{{field}: null}}")
            if not equals:
                remaining.pop()
        else:
            found.append(item)
    return found


def chosen_in(files: Sequence[str], key: str) -> str | None:
    """The plugin that configuration files choose; the last file wins.

    Args:
        files: Arguments ``--config=FILE``, a path or YAML.
        key: The plugin's section.
    """
    for file in reversed(files):
        given = file.partition("=")[2]
        try:
            path = Path(given)
            config = read_yaml(path.read_text(encoding="utf-8") if path.is_file() else given)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser reports it
        if isinstance(config, dict) and (found := class_path_of(config.get(key))) is not None:
            return found
    return None
