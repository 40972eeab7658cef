"""Measuring models: latency, FLOPs, parameters, bytes on disk, and latency tables."""

from bplightning.measuring.latency_table import LatencyTable
from bplightning.measuring.measure import bytes_on_disk, flops, latency, parameters, speedup
from bplightning.measuring.records import Machine, ParameterCount
from bplightning.measuring.timing import Middle, Times, middle, paired_ratio, side_by_side

__all__ = [
    "LatencyTable",
    "Machine",
    "Middle",
    "ParameterCount",
    "Times",
    "bytes_on_disk",
    "flops",
    "latency",
    "middle",
    "paired_ratio",
    "parameters",
    "side_by_side",
    "speedup",
]
