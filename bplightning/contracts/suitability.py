"""Which strategies prune while a model is trained, and which without: each says it itself."""

from __future__ import annotations

from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.plugins import STRATEGIES, available, load, name_of


def require_by_training(strategy: PruningStrategy) -> None:
    """Refuse a strategy that does nothing while a model is trained.

    Raises:
        UserError: It is one.
    """
    if not strategy.by_training:
        raise UserError(
            f"strategy {name_of(type(strategy))!r} prunes a model that is trained already, and nothing is pruned by it "
            "in training: give it to `prune`, and train what comes out, its compact/, further with `fit --strategy "
            "dense`."
        )


def require_without_training(strategy: PruningStrategy) -> None:
    """Refuse a strategy that knows nothing before a model is trained.

    Raises:
        UserError: It is one.
    """
    if not strategy.without_training:
        raise UserError(
            f"strategy {name_of(type(strategy))!r} learns in training what to prune, and `prune` trains nothing: use "
            f"`fit`, or take one of {', '.join(_without_training())}."
        )


def _without_training() -> list[str]:
    """The registered strategies that `prune` takes."""
    names = []
    for name in available(STRATEGIES):
        try:
            cls = load(STRATEGIES, name)
        except UserError:  # somebody else's, and broken
            continue
        if getattr(cls, "without_training", False):
            names.append(name)
    return names
