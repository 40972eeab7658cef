"""What a strategy and a task promise, and how their settings are stored beside a model."""
