"""What a strategy and a task promise, and how their settings are stored beside a model."""

from bplightning.contracts.target import NO_TARGET, Target
from bplightning.contracts.targeted import Targeted
from bplightning.contracts.window import PRUNING_WINDOW, PruningWindow

__all__ = ["NO_TARGET", "PRUNING_WINDOW", "PruningWindow", "Target", "Targeted"]
