"""Runs as folders: built from a configuration, read back, compacted again, asked for predictions."""
