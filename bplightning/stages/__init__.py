"""The stages of a run: baseline, pruning, compaction, alignment, refill, evaluation and report."""
