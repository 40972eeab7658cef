"""Constructors that pass arguments on to their base without listing them again."""

from __future__ import annotations

import inspect
from typing import Any, Unpack, get_args, get_origin, get_type_hints


def spell_out(cls: type) -> None:
    """Let the signature of a class's constructor name the arguments that its ``**data: Unpack[Some]`` stands for.

    A type checker reads the `TypedDict` `Some`. The command line, the documentation and whatever else calls
    `inspect.signature` need each argument by itself, with the default that the base gives it, which a `TypedDict`
    cannot hold. A constructor that passes nothing on in this way stays as it is.

    Args:
        cls: The class, whose base's constructor takes every key of `Some`.

    >>> from typing import TypedDict
    >>> class Size(TypedDict, total=False):
    ...     width: int
    >>> class Box:
    ...     def __init__(self, width: int = 3, height: int = 2) -> None: ...
    >>> class Lid(Box):
    ...     def __init__(self, colour: str = "red", **data: Unpack[Size]) -> None: ...
    >>> spell_out(Lid)
    >>> print(inspect.signature(Lid))
    (colour: 'str' = 'red', *, width: int = 3) -> 'None'
    """
    init: Any = cls.__dict__.get("__init__")
    if init is None:
        return
    signature = inspect.signature(init)
    *own, last = signature.parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD or "Unpack" not in str(last.annotation):
        return
    hints = get_type_hints(init)
    passed = hints.pop(last.name)
    assert get_origin(passed) is Unpack
    types = get_type_hints(get_args(passed)[0])
    base: Any = super(cls, cls)
    taken = inspect.signature(base.__init__).parameters
    inherited = [
        taken[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
        for name, annotation in types.items()
    ]
    init.__signature__ = signature.replace(parameters=[*own, *inherited])
    init.__annotations__ = hints | types
