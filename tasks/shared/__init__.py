"""What several tasks share: data from files and the hub, tokens, metrics, and the base of tasks on text."""
