"""Text of files on a terminal: what would move its cursor or change its colors is shown, not done."""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """A text in which control characters are escaped, and those that change the direction of writing.

    Args:
        text: The text, of several lines or one.

    >>> printable(chr(27) + "[31mred") == repr(chr(27))[1:-1] + "[31mred"
    True
    """
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)


def printable_throughout(value: Any) -> Any:
    """What JSON holds, with all of its texts as `printable` has them, keys too.

    Args:
        value: Dictionaries, lists, texts and numbers.

    >>> printable_throughout({"a": ["b", 1]})
    {'a': ['b', 1]}
    """
    if isinstance(value, dict):
        return {printable_throughout(key): printable_throughout(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [printable_throughout(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value
