"""The base of strategies that have a target."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import ClassVar

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import NO_TARGET, Target, shown
from bplightning.errors import UserError
from bplightning.plugins import name_of


class Targeted(PruningStrategy, ABC):
    """Can be told how much to keep.

    The constructor takes ``target: Target = NO_TARGET`` and calls `take_target` after the base's own.

    Attributes:
        target_kinds: The kinds of target it can be given, names of fields of `Target`.
        makes_size_variants: Whether it can be given several speed-ups at once, and makes a model of each.
        keeps_uniform: Whether it can keep as many heads and units in every layer (`Target.uniform`); where that depends
            on its other settings, it refuses those itself.
        default_target: Its target where the user gives none. A class attribute and not the parameter's default: with
            that, another kind given on the command line would be a second target.
        target: What was given, else the default.
    """

    target_kinds: ClassVar[tuple[str, ...]] = ("density",)
    makes_size_variants: ClassVar[bool] = False
    keeps_uniform: ClassVar[bool] = False
    default_target: ClassVar[Target] = NO_TARGET
    target: Target

    def take_target(self, target: Target) -> None:
        """Set `target`.

        Args:
            target: What the constructor was given.

        Raises:
            UserError: The strategy cannot prune to a target of this kind.
        """
        if not isinstance(target, Target):
            raise UserError(f"target is {target!r}; it must be a Target, such as Target(density=0.25).")
        kind = target.kind
        takes = " or ".join(f"target.{name}" for name in self.target_kinds)
        if kind is not None and kind not in self.target_kinds:
            raise UserError(
                f"target.{kind} is {shown(target.value)}, which {name_of(type(self))} cannot prune to: it takes "
                f"{takes}. Give that, or take another strategy."
            )
        if isinstance(target.value, list) and not self.makes_size_variants:
            raise UserError(
                f"target.{kind} is {shown(target.value)}, and {name_of(type(self))} makes one model: give one number, "
                "or take ziplm, which makes a model of each size."
            )
        if target.uniform and not self.keeps_uniform:
            raise UserError(
                f"target.uniform is true, and {name_of(type(self))} chooses by layer how much it keeps: leave it out, "
                "or take hybrid, soft-movement, movement, magnitude, wanda, post-training or one-shot-taylor."
            )
        self.target = replace(self.default_target, uniform=target.uniform) if kind is None else target
