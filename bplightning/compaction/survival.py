"""Survival scores of heads and units: the score threshold up to which each of them is not dead.

The rules are those of `bplightning.compaction.dead_parts`: a head is dead when each of its dimensions has a value row
or an output column without a kept tile, a unit when one of its rows or its column has none. A value that is zero by
chance is not considered.

Legend: `O` out features, `I` in features, `R`, `C` grid rows and columns, `H` heads, `K` key/value heads, `D` head
size, `F` units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink
from bplightning.masks.masking import Cover, Mask


class Survival:
    """Computes survival scores of heads and units from the scores of masks.

    Args:
        layout: Layout of the model.
        masks: Its masks.

    Attributes:
        groups: The groups that can lose heads or units, and whose projections all have a mask.
    """

    def __init__(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:
        masked = {cover.member for mask in masks for cover in mask.covers}
        self.groups = [group for group in can_shrink(layout) if masked.issuperset(group.members)]
        self._biased = {
            group.name: any(member.bias_of(layout.model) is not None for member in group.members[:-1])
            for group in self.groups
        }
        self._where: dict[Member, tuple[int, Cover, tuple[int, ...]]] = {}
        for index, mask in enumerate(masks):
            for cover in mask.covers:
                self._where[cover.member] = index, cover, tuple(cover.member.weight(layout.model).shape)

    def of(self, group: Group, scores: Sequence[Tensor]) -> Tensor:
        """The survival score of each key/value head of a group, or of each unit: ``(K,)`` or ``(F,)``.

        Args:
            group: One of `groups`.
            scores: The scores ``(R, C)`` of each mask.
        """
        return self._heads(group, scores) if isinstance(group, AttentionGroup) else self._units(group, scores)

    def _heads(self, group: AttentionGroup, scores: Sequence[Tensor]) -> Tensor:
        shape = group.kv_heads, group.heads // group.kv_heads, group.head_size
        values = self._lines(group.value, scores, axis=0).view(shape[0], 1, shape[2])
        columns = self._lines(group.output, scores, axis=1).view(shape)
        return torch.minimum(values, columns).flatten(1).amax(1)

    def _units(self, group: FeedForwardGroup, scores: Sequence[Tensor]) -> Tensor:
        """With a bias, a unit is dead only if both of its factors are."""
        rows = torch.stack([self._lines(up, scores, axis=0) for up in group.up])
        survival = rows.amax(0) if self._biased[group.name] else rows.amin(0)
        return torch.minimum(survival, self._lines(group.down, scores, axis=1))

    def _lines(self, member: Member, scores: Sequence[Tensor], *, axis: int) -> Tensor:
        """The highest score of the tiles in each row (`axis` 0) or column (1) of a member: ``(O,)`` or ``(I,)``."""
        index, cover, shape = self._where[member]
        scores_RC = scores[index].T if cover.transposed else scores[index]
        highest = scores_RC.amax(1 - axis)
        return highest.repeat_interleave(shape[axis] // len(highest))
