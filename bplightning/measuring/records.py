"""Records of measurements, as they are stored in JSON."""

from __future__ import annotations

from typing import TypedDict


class ParameterCount(TypedDict):
    """Number of weights in linear layers of encoder and decoder, and of all parameters."""

    encoder_linear: int
    all: int


class Machine(TypedDict):
    """The machine on which latency was measured, without its host name."""

    cpu: str
    threads: int
    device: str
    platform: str


class Interval(TypedDict):
    """95 % confidence interval of a ratio of times, and whether it is settled, see `timing.speedup_of`."""

    low: float | None
    high: float | None
    settled: bool


class Speedup(Interval):
    """Median of paired ratios of times, with its interval."""

    ratio: float
