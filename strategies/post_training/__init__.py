"""Post-training pruning: Fisher scores, a search and tuned gates, without training."""

from bplightning.strategies.post_training.post_training import PostTraining

__all__ = ["PostTraining"]
