"""Records of measurements, as JSON holds them."""

from __future__ import annotations

from typing import TypedDict


class ParameterCount(TypedDict):
    """Numbers of parameters with the two named denominators."""

    encoder_linear: int
    all: int


class Machine(TypedDict):
    """Where latency was measured; no host name."""

    cpu: str
    threads: int
    device: str
    platform: str
