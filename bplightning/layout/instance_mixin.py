"""Classes mixed into the class of one module, so that this one instance computes what its original cannot.

A model keeps transformers' modules. Where a module must compute something else, its instance changes its class to a
subclass of the original, made here. That subclass has no name in any module, so an instance is pickled by the mixins
and the original class. Nothing else in the core changes the class of a module.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


class Mixin:
    """Base of what is mixed into a module's class.

    Attributes:
        innermost: Whether it comes right before the original class and replaces its `forward`; other mixins wrap that.
        renames: Whether the mixed class shows its name before the original's. A model keeps its name, which is saved in
            its configuration, and by which a Trainer finds its labels.
    """

    innermost = False
    renames = True

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle the mixins, the original class and the state."""
        return _new, _parts(type(self)), self.__dict__


def mix_in(module: nn.Module, mixin: type[Mixin]) -> None:
    """Add `mixin` to the class of `module`; a second call changes nothing."""
    if isinstance(module, mixin):
        return
    mixins, original = _parts(type(module))
    mixins = (*mixins, mixin) if mixin.innermost else (mixin, *mixins)
    module.__class__ = _mixed(mixins, original)


def take_out(module: nn.Module, mixin: type[Mixin]) -> None:
    """Remove `mixin` from the class of `module`."""
    if not isinstance(module, mixin):
        return
    mixins, original = _parts(type(module))
    left = tuple(each for each in mixins if each is not mixin)
    module.__class__ = _mixed(left, original) if left else original


@functools.cache
def _mixed(mixins: tuple[type, ...], original: type) -> Any:
    # A subclass of the original: transformers finds the modules whose attention weights it records by class.
    names = "".join(mixin.__name__ for mixin in mixins if mixin.renames)  # type: ignore[attr-defined]
    body = {"mixed_of": (mixins, original), "__module__": original.__module__}  # transformers reads a model's source
    return type(f"{names}{original.__name__}", (*mixins, original), body)


def _parts(cls: type) -> tuple[tuple[type, ...], type]:
    """The mixins and the original class of a class that `_mixed` made; of any other class, no mixin and itself."""
    parts: tuple[tuple[type, ...], type] = getattr(cls, "mixed_of", ((), cls))
    return parts


def _new(mixins: tuple[type, ...], original: type) -> Any:
    return object.__new__(_mixed(mixins, original))
