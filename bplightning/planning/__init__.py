"""Plans: the parts of a model that a strategy would prune, and how fast it could become, before any training."""
