"""What a compact model would weigh and work, computed from densities.

Legend: `B` rows of a batch, `L` tokens of each row, in the encoder as in the decoder; `H` heads, `D` head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from bplightning.layout import AttentionGroup
from bplightning.measure import shape_name
from bplightning.planning_schema import Estimate, Estimates
from bplightning.report_schema import ParameterCount
from bplightning.resizing import Group

EXAMPLE_DENSITIES = (0.5, 0.25, 0.1)
"""Densities shown where training alone decides how much stays."""

ALMOST_ALL = 1 - 1e-6
"""A density above this one is a dense model's."""


def estimates(
    model: nn.Module,
    shrinking: Sequence[Group],
    *,
    parameters: ParameterCount,
    flops: Mapping[tuple[int, int], int],
    density: Mapping[str, float],
) -> Estimates:
    """The compact model where the schedule ends or, where that sets no density, at some densities.

    Args:
        model: The dense model.
        shrinking: Its groups that can lose heads or units.
        parameters: How many parameters it has.
        flops: `B` and `L` to its floating-point operations.
        density: Fraction of weights kept at the schedule's end by role, ``"total"`` among them.
    """
    scheduled = density["total"] < ALMOST_ALL
    points = [density] if scheduled else [dict.fromkeys(density, example) for example in EXAMPLE_DENSITIES]
    return Estimates(
        density_from="schedule" if scheduled else "training",
        dense_flops={shape_name(*shape): count for shape, count in flops.items()},
        at=[_estimate(model, shrinking, parameters, flops, point) for point in points],
    )


def _estimate(
    model: nn.Module,
    shrinking: Sequence[Group],
    parameters: ParameterCount,
    flops: Mapping[tuple[int, int], int],
    density: Mapping[str, float],
) -> Estimate:
    lost = {group: 1 - density.get(group.role, 1.0) for group in shrinking}
    weights = sum(share * _weights(model, group) for group, share in lost.items())
    biases = sum(share * _biases(model, group) for group, share in lost.items())
    left = {
        shape: dense - round(sum(share * _flops(model, group, *shape) for group, share in lost.items()))
        for shape, dense in flops.items()
    }
    return Estimate(
        density=density["total"],
        by_role={role: value for role, value in density.items() if role != "total"},
        parameters=ParameterCount(
            encoder_linear=parameters["encoder_linear"] - round(weights),
            all=parameters["all"] - round(weights + biases),
        ),
        flops={shape_name(*shape): count for shape, count in left.items()},
        speedup={shape_name(*shape): flops[shape] / count for shape, count in left.items()},
    )


def _weights(model: nn.Module, group: Group) -> int:
    return sum(member.weight(model).numel() for member in group.members)


def _biases(model: nn.Module, group: Group) -> int:
    """Biases that go with heads or units: the output or down projection keeps its own."""
    biases = (member.bias_of(model) for member in group.members[:-1])
    return sum(bias.numel() for bias in biases if bias is not None)


def _flops(model: nn.Module, group: Group, rows: int, tokens: int) -> int:
    """Two operations a weight and token and, for attention, two a head's dimension and pair of tokens, twice.

    The two products are queries with keys, ``(L, D) x (D, L)``, and their softmax with the values, ``(L, L) x (L, D)``.
    """
    linear = 2 * rows * tokens * _weights(model, group)
    if not isinstance(group, AttentionGroup):
        return linear
    return linear + 4 * rows * tokens * tokens * group.heads * group.head_size
