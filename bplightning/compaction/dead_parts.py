"""Finding heads and units that no longer contribute anything to the output of a model.

Legend: `O` out features, `I` in features, `K` key/value heads, `D` head size, `F` units of a feed-forward layer.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, writer_columns
from bplightning.layout.routing import is_dropped


@dataclass(frozen=True)
class Dead:
    """The dead parts of one group.

    Attributes:
        group: The group.
        weight: The weight ``(O, I)`` of its output or down projection.
        removable: Which heads or units can be removed, on the model's device.
        values: The constant input of each column of the output or down projection whose head or unit is removable,
            float64; 0 where the column is zero.
    """

    group: Group
    weight: Tensor
    removable: Tensor
    values: Tensor

    def constant(self, kept: tuple[int, ...]) -> Tensor | None:
        """The constant that everything not `kept` adds to the output, float64 ``(O,)``; `None` for nothing."""
        removed = torch.ones_like(self.removable)
        removed[list(kept)] = False
        columns = writer_columns(self.group, removed.nonzero().flatten())
        columns = columns[self.values[columns] != 0]
        if len(columns) == 0:
            return None
        return self.weight[:, columns].double() @ self.values[columns]


@torch.no_grad()
def find_dead(layout: PrunableLayout) -> dict[str, Dead]:
    """The dead parts of every group of a layout, by the group's name."""
    attention = {group.name: _dead_heads(layout.model, group) for group in layout.attention}
    return attention | {group.name: _dead_units(layout.model, group) for group in layout.feed_forward}


def _dead_heads(model: nn.Module, group: AttentionGroup) -> Dead:
    """A head is a constant when each of its dimensions has a zero value row or a zero output column.

    Softmax rows sum to one, so a zero value row gives the value's bias for any query and key.
    """
    output = group.output.weight(model)
    shape = (group.kv_heads, group.heads // max(group.kv_heads, 1), group.head_size)
    constant_values = _zero(group.value.weight(model), dim=1).view(shape[0], 1, shape[2])
    unread = _zero(output, dim=0).view(shape)
    values = torch.where(unread, 0, _bias(model, group.value).view(shape[0], 1, shape[2]))
    return Dead(group, output, (constant_values | unread).flatten(1).all(dim=1), values.flatten())


def _dead_units(model: nn.Module, group: FeedForwardGroup) -> Dead:
    """A unit is dead when nothing reads it or its value is constant; a unit of an expert, when the expert is dropped.

    One expert cannot be narrower than those it is stacked with, so its other dead units stay as zeros.
    """
    down = group.down.weight(model)
    if group.down.expert is not None:
        removable = down.new_full((group.width,), is_dropped(model, group), dtype=torch.bool)
        return Dead(group, down, removable, torch.zeros_like(removable, dtype=torch.float64))
    activation = operator.attrgetter(group.activation)(model)
    constant, *others_constant = [_zero(up.weight(model), dim=1) for up in group.up]
    first, *others = [_bias(model, up) for up in group.up]
    values: Tensor = activation(first)
    for other_constant, other in zip(others_constant, others, strict=True):  # gated: the factor without an activation
        values = torch.where(constant, values, 1) * torch.where(other_constant, other, 1)
        zero = values == 0
        constant = (constant & other_constant) | zero
    unread = _zero(down, dim=0)
    return Dead(group, down, unread | constant, torch.where(constant & ~unread, values, 0))


def _zero(weight_OI: Tensor, *, dim: int) -> Tensor:
    """Which rows (`dim` 1) or columns (`dim` 0) are all zero; NaN is not zero."""
    if weight_OI.shape[dim] == 0:
        return torch.ones(weight_OI.shape[1 - dim], dtype=torch.bool, device=weight_OI.device)
    return (weight_OI.amax(dim) == 0) & (weight_OI.amin(dim) == 0)


def _bias(model: nn.Module, member: Member) -> Tensor:
    """The bias of `member` in float64, zeros where it has none."""
    bias = member.bias_of(model)
    weight = member.weight(model)
    return weight.new_zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
