"""Exact compaction: finding dead parts, removing them, and saving and loading the smaller model."""
