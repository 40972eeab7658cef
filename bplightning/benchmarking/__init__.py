"""Benchmarks: a saved model and the dense one timed side by side, over a grid of shapes and backends."""
