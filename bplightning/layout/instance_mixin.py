"""Classes mixed into the class of one module, so that this one instance computes what its original cannot.

A compact model keeps transformers' modules; where slicing their projections is not enough, an instance changes its
class to a subclass of the original, made here. The subclass has no name in any module, so it pickles by its parts.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


class Mixin:
    """Base of what is mixed into a module's class.

    Attributes:
        innermost: Whether it stands right above the original class, which it replaces; others wrap what is there.
    """

    innermost = False

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by what the class was made of."""
        return _new, _parts(type(self)), self.__dict__


def mix_in(module: nn.Module, mixin: type[Mixin]) -> None:
    """Give `module` a class that is `mixin` and what it was before; once is enough."""
    if isinstance(module, mixin):
        return
    mixins, original = _parts(type(module))
    mixins = (*mixins, mixin) if mixin.innermost else (mixin, *mixins)
    module.__class__ = _mixed(mixins, original)


def take_out(module: nn.Module, mixin: type[Mixin]) -> None:
    """Give `module` the class that it has without `mixin`."""
    if not isinstance(module, mixin):
        return
    mixins, original = _parts(type(module))
    left = tuple(each for each in mixins if each is not mixin)
    module.__class__ = _mixed(left, original) if left else original


@functools.cache
def _mixed(mixins: tuple[type, ...], original: type) -> Any:
    # A subclass of the original: transformers finds the modules whose attention weights it records by class.
    names = "".join(mixin.__name__ for mixin in mixins)
    return type(f"{names}{original.__name__}", (*mixins, original), {"mixed_of": (mixins, original)})


def _parts(cls: type) -> tuple[tuple[type, ...], type]:
    """What `_mixed` made `cls` of; nothing and `cls` itself where it did not."""
    parts: tuple[tuple[type, ...], type] = getattr(cls, "mixed_of", ((), cls))
    return parts


def _new(mixins: tuple[type, ...], original: type) -> Any:
    return object.__new__(_mixed(mixins, original))
