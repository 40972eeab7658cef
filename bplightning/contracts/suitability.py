"""Which strategies prune while a model is trained, and which without: each says it itself."""

from __future__ import annotations

from bplightning.contracts.capabilities import OneShot
from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.plugins import STRATEGIES, available, load, name_of


def prunes_by_training(strategy: PruningStrategy) -> bool:
    """Whether a strategy prunes a model while that is trained: all do but those that need no training and say so."""
    one_shot = strategy.capability(OneShot)
    return one_shot is None or one_shot.by_training


def require_by_training(strategy: PruningStrategy) -> None:
    """Refuse a strategy that does nothing while a model is trained.

    Raises:
        UserError: It is one.
    """
    if not prunes_by_training(strategy):
        raise UserError(
            f"strategy {name_of(type(strategy))!r} prunes without training: use `bplightning prune`, then fine-tune "
            "RUN/compact with `fit --strategy dense`."
        )


def require_one_shot(strategy: PruningStrategy) -> OneShot:
    """A strategy as one that prunes without training; refused if it is none.

    Raises:
        UserError: It learns in training what to prune.
    """
    one_shot = strategy.capability(OneShot)
    if one_shot is None:
        raise UserError(
            f"strategy {name_of(type(strategy))!r} learns in training what to prune, and `prune` trains nothing: use "
            f"`fit`, or take one of {', '.join(_one_shots())}."
        )
    return one_shot


def _one_shots() -> list[str]:
    """The registered strategies that `prune` takes."""
    names = []
    for name in available(STRATEGIES):
        try:
            cls = load(STRATEGIES, name)
        except UserError:  # somebody else's, and broken
            continue
        if getattr(cls, "offers", bool)(OneShot):
            names.append(name)
    return names
