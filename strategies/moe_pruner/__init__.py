"""MoE-Pruner: weights and experts of a mixture, by weights, inputs and router weights."""

from bplightning.strategies.moe_pruner.moe_pruner import MoEPruner

__all__ = ["MoEPruner"]
