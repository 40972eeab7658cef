"""No pruning: a plain fine-tuning, for the dense baseline, for a teacher and for refill."""

from __future__ import annotations

from bplightning.contracts.strategy import PruningStrategy


class Dense(PruningStrategy):
    """Prunes nothing: every hook of the contract does nothing by default."""
