"""The schema of a benchmark: plain JSON, from which table and plot are drawn.

``docs/benchmark-schema.md`` explains every key.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from bplightning.measuring.records import Machine, ParameterCount, Speedup

SCHEMA_VERSION = 1
"""Raised by one whenever a key is renamed, removed, added or changes its meaning or unit."""

Work = Literal["forward", "first_token", "generation", "decoding"]
"""The work that is timed: a forward pass; reading the prompt and writing one token; the same with all new tokens; one
further token, which is the difference of the two before, per token."""


class BenchmarkedModel(TypedDict):
    """A model that was timed; ``bytes_on_disk`` is `null` for a name of the hub."""

    path: str
    class_name: str
    parameters: ParameterCount
    bytes_on_disk: int | None


class LatencyQuantiles(TypedDict):
    """Milliseconds of one pass."""

    median: float
    p90: float


class Row(TypedDict):
    """One model in one backend at one shape.

    ``speedup`` compares with the dense model in the same backend, ``speedup_over_eager`` with the dense model in eager.
    """

    work: Work
    shape: str
    batch_size: int
    length: int
    new_tokens: int | None
    model: str
    backend: str
    latency_ms: LatencyQuantiles
    rounds: int
    rows_per_second: float
    tokens_per_second: float
    flops: int
    ideal_speedup: float | None
    efficiency: float | None
    speedup: Speedup | None
    speedup_over_eager: Speedup | None


class Settings(TypedDict):
    """The settings of the timing; ``changed`` lists the shapes that had to be changed."""

    device: str
    dtype: str
    backends: list[str]
    tolerance: float
    seconds: float
    changed: list[str]


class Benchmark(TypedDict):
    """The whole document."""

    schema_version: int
    date: str
    command: str
    reference: str
    models: dict[str, BenchmarkedModel]
    settings: Settings
    settled: bool
    rows: list[Row]
    versions: dict[str, str]
    machine: Machine
