"""What is wrong with an argument list, in one line, with the option that may have been meant."""

from __future__ import annotations

import re
from argparse import Action, ArgumentError
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NoReturn

from bplightning.errors import UserError

CLOSE = 0.7
"""Least similarity, of 1, of a name that is suggested."""

UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<words>.*)|Option '(?P<option>[^']+)' is not accepted|"
    r"does not accept option '(?P<key>[^']+)'"
)
"""How argparse and jsonargparse report an option that does not exist."""

SECTION = re.compile(r'Parser key "(?P<section>\w+)"')
"""How jsonargparse names the section in whose value an error is."""


class OneLine:
    """For a parser, before `argparse.ArgumentParser` or one derived from it."""

    prog: str
    exit_on_error: bool
    _actions: list[Action]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line with what is wrong, and where to read on; the usage of `fit` alone would fill two screens.

        Args:
            message: What is wrong.
            ex: The exception behind it, where jsonargparse has one.

        Raises:
            UserError: Always, unless `exit_on_error` is off: the command line prints it, and from Python it is an
                ordinary exception.
        """
        if not self.exit_on_error:
            raise ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        line = " ".join(message.split())
        known = parser.known_options() if isinstance(parser, OneLine) else []
        raise UserError(f"{line}{_suggestion(line, known)} (see {program} --help)") from ex

    def known_options(self) -> list[str]:
        """All options that this parser takes, such as ``trainer.max_epochs``."""
        return [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]


def _suggestion(line: str, known: Sequence[str]) -> str:
    """The end of an error about options that do not exist."""
    found = UNKNOWN.search(line)
    if found is None:
        return ""
    within = SECTION.search(line)
    prefix = "" if within is None else f"{within['section']}."
    if found["words"] is None:
        wrong = [prefix + (found["option"] or found["key"])]
    else:
        words = [word for word in found["words"].split() if word.startswith("--")]
        wrong = [prefix + word[2:].partition("=")[0] for word in words]
    meant = dict.fromkeys(f"--{close}" for word in wrong if (close := closest_option(word, known)) is not None)
    return f"; did you mean {' and '.join(meant)}?" if meant else ""


def closest_option(wrong: str, known: Sequence[str]) -> str | None:
    """The option that was probably meant, if one is close: by its last part within the section that was named.

    >>> known = ["baseline", "trainer.max_epochs", "strategy.target.density", "distillation.teacher"]
    >>> [closest_option(wrong, known) for wrong in ("baselin", "strategy.densty", "max_epochs", "distilation.teacher")]
    ['baseline', 'strategy.target.density', 'trainer.max_epochs', 'distillation.teacher']
    >>> closest_option("strategy.nope", known) is None
    True

    Args:
        wrong: The option that does not exist, without its dashes.
        known: The options that exist, without theirs.
    """
    if not known:
        return None
    sections = {option.partition(".")[0] for option in known if "." in option}
    section, dot, _ = wrong.partition(".")

    def similarity(option: str) -> float:
        by_leaf = _alike(wrong.rpartition(".")[2], option.rpartition(".")[2])
        if not dot:  # a section may have been left out, but then the rest must be exact
            return _alike(wrong, option) if "." not in option else by_leaf if by_leaf == 1 else 0
        if section in sections:
            return by_leaf if option.partition(".")[0] == section else 0
        return min(by_leaf, _alike(section, option.partition(".")[0]))

    # Of equally close ones the trainer's: it is the one that Lightning's users know by heart.
    best = max(known, key=lambda option: (similarity(option), option.startswith("trainer."), _alike(wrong, option)))
    return best if similarity(best) >= CLOSE else None


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
