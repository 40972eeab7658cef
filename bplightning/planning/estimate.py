"""Estimating size and FLOPs of a compact model from densities.

Legend: `B` rows of a batch, `L` tokens of each row, in the encoder as in the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from bplightning.layout.groups import AttentionGroup
from bplightning.layout.resizing import Group
from bplightning.measuring.measure import shape_name
from bplightning.measuring.records import ParameterCount
from bplightning.planning.schema import Estimate, Estimates

EXAMPLE_DENSITIES = (0.5, 0.25, 0.1)
"""Densities shown where only training decides how much stays."""

ALMOST_ALL = 1 - 1e-6
"""A density above this one counts as dense."""


def estimates(
    model: nn.Module,
    shrinking: Sequence[Group],
    *,
    parameters: ParameterCount,
    flops: Mapping[tuple[int, int], Mapping[str, int]],
    density: Mapping[str, float],
) -> Estimates:
    """Estimates at the density where the schedule ends or, if it sets none, at example densities.

    Args:
        model: The dense model.
        shrinking: Its groups that can lose heads or units.
        parameters: Its number of parameters.
        flops: `B` and `L` to its floating-point operations, by module.
        density: Fraction of weights kept at the schedule's end by role, ``"total"`` among them.
    """
    scheduled = density["total"] < ALMOST_ALL
    points = [density] if scheduled else [dict.fromkeys(density, example) for example in EXAMPLE_DENSITIES]
    return Estimates(
        density_from="schedule" if scheduled else "training",
        dense_flops={shape_name(*shape): counts[""] for shape, counts in flops.items()},
        at=[_estimate(model, shrinking, parameters, flops, point) for point in points],
    )


def _estimate(
    model: nn.Module,
    shrinking: Sequence[Group],
    parameters: ParameterCount,
    flops: Mapping[tuple[int, int], Mapping[str, int]],
    density: Mapping[str, float],
) -> Estimate:
    lost = {group: 1 - density.get(group.role, 1.0) for group in shrinking}
    weights = sum(share * _weights(model, group) for group, share in lost.items())
    biases = sum(share * _biases(model, group) for group, share in lost.items())
    left = {
        shape: counts[""] - round(sum(share * flops_of_group(counts, group) for group, share in lost.items()))
        for shape, counts in flops.items()
    }
    return Estimate(
        density=density["total"],
        by_role={role: value for role, value in density.items() if role != "total"},
        parameters=ParameterCount(
            encoder_linear=parameters["encoder_linear"] - round(weights),
            all=parameters["all"] - round(weights + biases),
        ),
        flops={shape_name(*shape): count for shape, count in left.items()},
        speedup={shape_name(*shape): flops[shape][""] / count for shape, count in left.items()},
    )


def _weights(model: nn.Module, group: Group) -> int:
    return sum(member.weight(model).numel() for member in group.members)


def _biases(model: nn.Module, group: Group) -> int:
    """Number of biases that are removed with heads or units; that of the output or down projection stays.

    Tables of position biases are not counted: the columns removed depend on all layers that use them.
    """
    biases = (member.bias_of(model) for member in group.members[:-1])
    return sum(bias.numel() for bias in biases if bias is not None)


def flops_of_group(counts: Mapping[str, int], group: Group) -> int:
    """FLOPs of `group` that shrink with its heads or units: its projections and, for attention, mixing the values.

    They are counted, not computed from sizes: layers may be shared and run several times (ALBERT), and projections may
    also read other inputs (DeBERTa's positions).
    """
    projections = {member.module for member in group.members}
    total = sum(counts.get(name, 0) for name in projections)
    if isinstance(group, AttentionGroup):
        inside = sum(counts.get(name, 0) for name in projections if name.startswith(f"{group.module}."))
        total += counts.get(group.module, 0) - inside
    return total
