"""One layer that loses heads or units, one at a time, while those that are left make up for them.

Legend: `O` out features, `I` in features of an output or down projection, `S` structures that are left (heads, with
grouped queries key/value heads, or units), `K` columns kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.resizing import Group, size_of, writer_columns
from bplightning.masks.masking import Mask
from bplightning.measuring.latency_table import LatencyTable
from bplightning.strategies.shared.second_order import InputMoments, refit, refit_bias, removals
from bplightning.strategies.ziplm.layer_sizes import LayerOptions

MOST_HEADS = 16
"""Every number of heads is a size to choose from, up to so many of them; of more, and of units, a geometric grid."""

STEP = 0.9
"""Of that grid: each size over the next greater one, as in the paper."""

SMALLEST = 1 / 100
"""Part of all that the grid goes down to, above none."""


@dataclass
class ShrinkingLayer:
    """One layer on its way to fewer heads or units.

    Attributes:
        group: The layer.
        mask: Its mask.
        weight: The weight ``(O, I)`` of its output or down projection, which is written to.
        bias: That one's bias, or `None`.
        before_OI: The weight as it was.
        before_O: The bias as it was.
        hessian_II: The Hessian of the columns that are left, float64.
        mean_I: Their mean, float64.
        columns_I: Which columns these are.
        left_S: Structures that are left, and ...
        order: ... the order they go in, counted in these.
        options: Sizes to choose from.
        size: How many are kept now.
    """

    group: Group
    mask: Mask
    weight: Tensor
    bias: Tensor | None
    before_OI: Tensor
    before_O: Tensor | None
    hessian_II: Tensor
    mean_I: Tensor
    columns_I: Tensor
    left_S: Tensor
    order: tuple[int, ...]
    options: LayerOptions
    size: int

    @classmethod
    def of(
        cls, model: nn.Module, group: Group, mask: Mask, moments: InputMoments, table: LatencyTable, *, damping: float
    ) -> ShrinkingLayer:
        """Find the order in which its structures go, and what that costs."""
        writer = group.members[-1]
        weight, bias = writer.weight(model), writer.bias_of(model)
        left_S = mask.kept[:, 0].nonzero().flatten()
        columns_I = writer_columns(group, left_S)
        hessian_II = moments.hessian(centered=bias is not None, damping=damping, columns_K=columns_I)
        if not bool(hessian_II.isfinite().all()):
            raise UserError(
                f"what {group.name} reads is NaN or infinite on the calibration data, and no damping (now {damping:g}) "
                "helps: look at the model's weights, and at trainer.precision."
            )
        before_OI = weight.clone()
        each = weight.shape[1] // size_of(group)
        try:
            found = removals(weight_OI=before_OI[:, columns_I], hessian_II=hessian_II, columns=each)
        except torch.linalg.LinAlgError as error:
            raise UserError(
                f"the Hessian of {group.name} cannot be inverted with damping {damping:g}: give a greater damping, "
                "such as 0.01, or more calibration examples."
            ) from error
        times, left = table.roles[group.role], len(left_S)
        kept = sizes_to_choose(left, heads=isinstance(group, AttentionGroup))
        options = LayerOptions(
            kept=kept,
            ms=tuple(times.of_count(size) for size in kept),
            errors=tuple(found.errors[left - size] for size in kept),
        )
        return cls(
            group=group,
            mask=mask,
            weight=weight,
            bias=bias,
            before_OI=before_OI,
            before_O=None if bias is None else bias.clone(),
            hessian_II=hessian_II,
            mean_I=moments.mean()[columns_I],
            columns_I=columns_I,
            left_S=left_S,
            order=found.order,
            options=options,
            size=left,
        )

    def kept(self, size: int) -> Tensor:
        """Which structures, of all, a size keeps: ``(heads or units,)``."""
        stay = self.left_S[list(self.order[len(self.order) - size :])]
        kept = torch.zeros(len(self.mask.kept), dtype=torch.bool, device=self.weight.device)
        kept[stay] = True
        return kept

    def shrink_to(self, size: int) -> None:
        """Write the weight, and the bias, with which so many structures do best; the columns of the others are zero."""
        if size == self.size:
            return
        self.size = size
        each = self.weight.shape[1] // size_of(self.group)
        stay_K = self.kept(size)[self.left_S].repeat_interleave(each).nonzero().flatten()
        before_OI = self.before_OI[:, self.columns_I]
        after_OI = torch.zeros_like(before_OI)
        if size == len(self.left_S):
            after_OI = before_OI
        else:
            found_OK = refit(weight_OI=before_OI, hessian_II=self.hessian_II, kept_K=stay_K)
            after_OI[:, stay_K] = found_OK.to(after_OI.dtype)
        self.weight.zero_()
        self.weight[:, self.columns_I] = after_OI
        if self.bias is not None and self.before_O is not None:
            self.bias.copy_(
                refit_bias(bias_O=self.before_O, before_OI=before_OI, after_OI=after_OI, mean_I=self.mean_I)
            )


def sizes_to_choose(left: int, *, heads: bool) -> tuple[int, ...]:
    """From none to all that are left, ascending.

    Args:
        left: How many there are.
        heads: Whether they are heads.

    >>> sizes_to_choose(4, heads=True), sizes_to_choose(30, heads=False)
    ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 18, 20, 22, 24, 27, 30))
    """
    if heads and left <= MOST_HEADS:
        return tuple(range(left + 1))
    counts, size = {0, left}, float(left)
    while size > max(SMALLEST * left, 0.5):
        counts.add(round(size))
        size *= STEP
    return tuple(sorted(counts))
