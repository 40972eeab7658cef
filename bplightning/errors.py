"""The error a user can act on, and the name that the user may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can put right: a name, a value, a file.

    Its message names the thing, the value it got, the rule and the remedy. The command line prints it as one line and
    ends with status 2; from Python it is an ordinary `ValueError`.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest name that exists, or nothing where none is close.

    >>> did_you_mean("hybird", ["dense", "hybrid"]), did_you_mean("wanda", ["dense", "hybrid"])
    ("; did you mean 'hybrid'?", '')

    Args:
        word: What was given.
        known: What there is.
    """
    names = list(known)
    close = get_close_matches(word, names, n=1, cutoff=0.65) or [
        name for name in names if word and name.startswith(word)
    ]
    return f"; did you mean {close[0]!r}?" if close else ""
