"""Plans: the parts of a model that a strategy would prune, and how fast it could become, before any training."""

from bplightning.planning.measured import Measuring
from bplightning.planning.schema import Plan
from bplightning.planning.table import render

__all__ = ["Measuring", "Plan", "render"]
