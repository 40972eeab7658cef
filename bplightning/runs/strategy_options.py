"""Checks of a strategy's options before the parser reads them, so that a refusal names what to give instead."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Mapping
from typing import Any

from bplightning.errors import UserError
from bplightning.plugins import STRATEGIES, load, name_of
from bplightning.runs.older_configuration import OPTIONS, old_options, renewed_options

SECTIONS = {"target": "density", "window": "initial_warmup"}
"""Options of a strategy that have options of their own, and one of these."""


def check_strategy_options(strategy: str, options: Mapping[str, Any], *, typed: bool) -> None:
    """Refuse a target or a window for a strategy without, and old spellings.

    Args:
        strategy: Short name or class path of the strategy.
        options: Name to value.
        typed: Whether they are from the command line, and not from a configuration file.

    Raises:
        UserError: There is one. Of an old spelling it names the new one, with the user's value.
    """
    accepted = inspect.signature(load(STRATEGIES, strategy)).parameters
    for name, value in options.items():
        section = name.partition(".")[0]
        if section in SECTIONS and section not in accepted:
            short = name_of(load(STRATEGIES, strategy))
            raise UserError(
                f"strategy.{name} is {_word(value)}, but {short} has no {section}: leave it out. `--strategy.help "
                f"{short}` lists the options it has."
            )
        if name in SECTIONS and isinstance(value, int | float):
            raise UserError(
                f"strategy.{name} is {_word(value)}, and has options of its own: give one of those, such as "
                f"--strategy.{name}.{SECTIONS[name]}."
            )
    if old := old_options(strategy, options):
        raise UserError(_old_spellings({name: options[name] for name in old}, typed=typed))


def _old_spellings(given: Mapping[str, Any], *, typed: bool) -> str:
    """The message about them."""
    try:
        new = renewed_options(given, list(given))
    except (TypeError, ZeroDivisionError):  # no number, which the new option refuses too
        new = {section: {field: "VALUE"} for section, field in (OPTIONS[name] for name in given)}
    if typed:
        told = ", ".join(f"--strategy.{name} {_word(value)}" for name, value in given.items())
        words = [
            f"--strategy.{section}.{field} {shlex.quote(_word(new[section][field]))}"
            for section in new
            for field in new[section]
        ]
        use = " ".join(words)
    else:
        told = ", ".join(f"{name}: {_word(value)}" for name, value in given.items()) + " in strategy.init_args"
        parts = [
            f"{section}: {{{', '.join(f'{field}: {_word(new[section][field])}' for field in new[section])}}}"
            for section in new
        ]
        use = " and ".join(parts)
    kind = "is an old spelling" if len(given) == 1 else "are old spellings"
    return f"{told} {kind}: {f'use {use} instead' if new else 'leave it out, since null is the default'}."


def _word(value: Any) -> str:
    """A value as it is typed, and as YAML has it.

    >>> _word(0.5), _word(1 / 3), _word([1.5, 2.0]), _word("a.json"), _word(True), _word(None)
    ('0.5', '0.333333', '[1.5,2]', 'a.json', 'true', 'null')
    """
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return json.dumps(value)
    return value if isinstance(value, str) else f"{value:g}"
