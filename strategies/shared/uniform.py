"""The same number of heads, or of units, in every layer of a stack: pure functions.

Legend: `G` layers, `N` heads or units of one, `R`, `C` grid rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bplightning.errors import UserError
from bplightning.masks.masking import Mask

WHOLE = ("head", "unit")
"""Granularities whose entries are what config.json counts."""


def level_by_rank(values_GN: Tensor) -> Tensor:
    """In place of each value the mean, over all layers, of the values that have its rank in theirs.

    Any cut then keeps the same number of each layer, and in each layer those with the highest values.

    Args:
        values_GN: What each head or unit is worth.

    >>> level_by_rank(torch.tensor([[1.0, 5.0], [9.0, 3.0]])).tolist()
    [[2.0, 7.0], [7.0, 2.0]]
    """
    sorted_GN, order_GN = values_GN.sort(dim=1, stable=True)
    level_GN = sorted_GN.mean(0).expand_as(sorted_GN)
    return torch.empty_like(values_GN).scatter_(1, order_GN, level_GN)


def levelled(masks: Sequence[Mask], scores: Sequence[Tensor], granularity: Mapping[str, str]) -> list[Tensor]:
    """The scores ``(R, C)`` of masks, levelled by rank over the layers of a role where whole heads or units go.

    Args:
        masks: The masks.
        scores: What the entries of each are worth.
        granularity: Role to granularity; other granularities keep their scores.
    """
    alike: dict[tuple[str, int], list[int]] = {}
    for index, mask in enumerate(masks):
        if granularity[mask.role] in WHOLE:
            alike.setdefault((mask.role, mask.kept.numel()), []).append(index)
    found = list(scores)
    for indices in alike.values():
        values_GN = level_by_rank(torch.stack([scores[index].flatten() for index in indices]))
        for index, values_N in zip(indices, values_GN, strict=True):
            found[index] = values_N.view(scores[index].shape)
    return found


def require_whole(granularity: Mapping[str, str], masks: Sequence[Mask]) -> None:
    """Refuse a uniform target where neither heads nor units go as a whole.

    Raises:
        UserError: No role has the granularity of a head or unit.
    """
    there = {role: granularity[role] for role in dict.fromkeys(mask.role for mask in masks)}
    if there and not set(there.values()) & set(WHOLE):
        raise UserError(
            f"target.uniform is true and granularity is {' and '.join(dict.fromkeys(there.values()))}, which leaves "
            "other parts of each layer: give granularity.feed_forward unit, or granularity.attention head."
        )
