"""Exact compaction: finding what is dead, removing it, and saving and loading the smaller model."""
