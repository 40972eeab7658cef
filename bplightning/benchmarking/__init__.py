"""How fast a saved model is beside the dense one, over a grid of shapes and backends."""
