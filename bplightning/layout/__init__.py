"""The prunable layout of a model: its attention and feed-forward groups, read from one table row per family."""
