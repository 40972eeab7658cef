"""Parts of the tasks for search: pooling, sentence-transformers folders, losses, and metrics of rankings."""
