"""Latency tables made by hand, for the tiny models."""

from __future__ import annotations

from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.latency_shapes import ModelShape
from bplightning.measuring.latency_table import LatencyTable, RoleTimes
from bplightning.measuring.measure import machine

HEAD_MS, UNITS_MS, REST_MS = 1.0, 3.0, 2.0
"""What a head takes in each layer, all units of a layer, and the rest."""


def made_table(layout: PrunableLayout, *, bent: float = 0.0, **changes: object) -> LatencyTable:
    """Heads cost alike; the first quarter of the units costs half of all. Together layers take what they sum to.

    Args:
        layout: Of the dense model.
        bent: Part that the layers take more than their sum where half of all is kept.
        **changes: Fields of the table.
    """
    shape = ModelShape.of(layout)
    roles = {}
    for role, of in shape.roles.items():
        if of.kind == "heads":
            kept, ms = (0, of.size), (0.0, HEAD_MS * of.size)
        else:
            kept, ms = (0, of.size // 4, of.size), (0.0, UNITS_MS / 2, UNITS_MS)
        roles[role] = RoleTimes(of, kept, ms)
    full, half = (sum(of.shape.layers * of.of_count(of.shape.size // part) for of in roles.values()) for part in (1, 2))
    values = {
        "model_type": shape.model_type,
        "model_class": shape.model_class,
        "hidden_size": shape.hidden_size,
        "batch_size": 1,
        "length": 16,
        "dtype": "float32",
        "machine": machine(),
        "date": "2026-11-27T00:00:00+00:00",
        "dense_ms": REST_MS + full,
        "roles": roles,
        "sums_ms": (0.0, half, full),
        "together_ms": (REST_MS, REST_MS + half * (1 + bent), REST_MS + full),
    }
    return LatencyTable(**(values | changes))  # type: ignore[arg-type]
