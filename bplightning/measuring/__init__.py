"""Measuring models: latency, FLOPs, parameters, bytes on disk, and latency tables."""
