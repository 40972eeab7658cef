"""SQuAD: its data, windows of tokens, answers and metrics."""
