"""From the target that was asked for to what measures a network by it."""

from __future__ import annotations

from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.strategies.shared.latency_target import LatencySpeedup
from bplightning.strategies.shared.size_targets import Density, FlopsShare, SizeTarget


def size_target(asked: Target) -> SizeTarget | None:
    """What measures a network by a target; `None` where none is asked for.

    Args:
        asked: The target, of one speed-up at most.

    Raises:
        UserError: With it nothing would be pruned.
    """
    require_pruning(asked)
    if asked.latency_speedup is not None:
        (speedup,) = asked.speedups
        return LatencySpeedup(speedup, asked.latency_table)
    if asked.flops is not None:
        return FlopsShare(asked.flops)
    return None if asked.density is None else Density(asked.density)


def require_pruning(asked: Target) -> None:
    """Refuse to keep all.

    Raises:
        UserError: The target is 1.
    """
    if asked.value == 1:
        raise UserError(
            f"target.{asked.kind} is 1, which keeps everything: give a value below 1, or take the strategy dense."
        )
