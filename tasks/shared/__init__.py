"""Parts that several tasks share: data from files and the hub, tokens, metrics, and the bases of tasks."""
