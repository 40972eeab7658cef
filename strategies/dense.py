"""No pruning: a plain fine-tuning, for the dense baseline, for a teacher and for refill."""

from __future__ import annotations

from bplightning.contracts.strategy import PruningStrategy


class Dense(PruningStrategy):
    """No pruning: plain fine-tuning, with the same report.

    Every hook of the contract does nothing by default.
    """
