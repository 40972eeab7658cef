"""Whether a JSON document is of a type: a `TypedDict` checked field by field, each problem with its place."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

PROBLEMS = 8
"""How many problems of a document are named."""


def schema_problems(value: object, hint: Any, path: str = "") -> Iterator[str]:
    """What is wrong with a value read from JSON.

    Args:
        value: The value.
        hint: The type it must have, made of `TypedDict`, dict, list, optional, str, int, float and any.
        path: Where it stands in the document.

    Yields:
        A line for each key that is missing, unknown, or holds another type.
    """
    if hint is Any:
        return
    where = path or "the document"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is not None:
            (inner,) = (each for each in arguments if each is not types.NoneType)
            yield from schema_problems(value, inner, path)
    elif typing.is_typeddict(hint) or origin is dict:
        if not isinstance(value, dict):
            yield f"{where} is {_kind(value)}, not an object"
            return
        hints = dict.fromkeys(value, arguments[1]) if origin is dict else typing.get_type_hints(hint)
        dotted = {key: f"{path}.{key}" if path else str(key) for key in [*hints, *value]}
        optional: frozenset[str] = getattr(hint, "__optional_keys__", frozenset())
        yield from (f"missing key {dotted[key]}" for key in hints if key not in value and key not in optional)
        yield from (f"unknown key {dotted[key]}" for key in value if key not in hints)
        for key in hints:
            if key in value:
                yield from schema_problems(value[key], hints[key], dotted[key])
    elif origin is list:
        if not isinstance(value, list):
            yield f"{where} is {_kind(value)}, not a list"
            return
        for index, each in enumerate(value):
            yield from schema_problems(each, arguments[0], f"{path}[{index}]")
    elif isinstance(value, bool) != (hint is bool) or not isinstance(value, (int, float) if hint is float else hint):
        yield f"{where} is {_kind(value)}, not {hint.__name__}"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
