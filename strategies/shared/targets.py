"""The target of a strategy that may be given one of several."""

from __future__ import annotations

from bplightning.errors import UserError
from bplightning.strategies.shared.latency_target import LatencySpeedup
from bplightning.strategies.shared.size_targets import Density, FlopsSpeedup, SizeTarget


def size_target(
    density: float | None,
    flops_speedup: float | None = None,
    latency_speedup: float | None = None,
    latency_table: str | None = None,
) -> SizeTarget | None:
    """The target that was asked for, or `None`.

    Args:
        density: Of `Density`.
        flops_speedup: Of `FlopsSpeedup`.
        latency_speedup: Of `LatencySpeedup`.
        latency_table: Its file.

    Raises:
        UserError: Several are given, one is out of its range, or there is a table that no target looks at.
    """
    given = {"density": density, "flops_speedup": flops_speedup, "latency_speedup": latency_speedup}
    asked = {f"target_{name}": value for name, value in given.items() if value is not None}
    if len(asked) > 1:
        raise UserError(
            f"{' and '.join(f'{name} is {value:g}' for name, value in asked.items())}, but a penalty is steered to one "
            "target: give one of them."
        )
    if latency_table is not None and latency_speedup is None:
        raise UserError(
            f"latency_table is {latency_table!r}, which only a target in time is steered by: give "
            "target_latency_speedup, too, or leave it out."
        )
    if latency_speedup is not None:
        return LatencySpeedup(latency_speedup, latency_table)
    if flops_speedup is not None:
        return FlopsSpeedup(flops_speedup)
    return None if density is None else Density(density)
