"""What a strategy would prune of a model, and how fast it could become, reported before any training."""
