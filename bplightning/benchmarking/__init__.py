"""Benchmarks: a saved model and the dense one timed side by side, over a grid of shapes and backends."""

from bplightning.benchmarking.models import Candidate, find_candidates
from bplightning.benchmarking.schema import Benchmark
from bplightning.benchmarking.table import render

__all__ = ["Benchmark", "Candidate", "find_candidates", "render"]
