"""Which entries of a grid to keep, given how much each is worth: exactly as many as asked for, whatever the ties.

Legend: `N` entries, `R`, `C` grid rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_of(*, density: float, entries: int) -> int:
    """How many of `entries` come nearest to a density, a half upwards.

    >>> count_of(density=0.25, entries=2), count_of(density=0.2, entries=2)
    (1, 0)
    """
    return int(density * entries + 0.5)


def keep_largest(*, values_N: Tensor, density: float, weights_N: Tensor | None = None) -> Tensor:
    """Keep the entries worth most, as many as come nearest to a density.

    Of equal entries the earlier ones are kept first. Nothing waits for the host.

    Args:
        values_N: Worth of each entry.
        density: Fraction to keep, in [0, 1].
        weights_N: Weights that each entry stands for, where they differ; `density` then counts weights.

    Returns:
        Binary ``(N,)``. What is kept misses the density by half an entry at most.

    >>> keep_largest(values_N=torch.tensor([1.0, 5.0, 5.0, 5.0]), density=0.5).int().tolist()
    [0, 1, 1, 0]
    >>> keep_largest(values_N=torch.tensor([3.0, 2.0, 1.0]), density=0.5, weights_N=torch.tensor([1, 3, 4])).tolist()
    [True, True, False]
    """
    if weights_N is not None:
        order_N = values_N.argsort(descending=True, stable=True)
        sizes_N = weights_N.double()[order_N]
        budget = density * sizes_N.sum()
        return torch.empty_like(values_N, dtype=torch.bool).scatter_(
            0, order_N, sizes_N.cumsum(0) - sizes_N / 2 <= budget
        )
    entries = values_N.numel()
    count = count_of(density=density, entries=entries)
    if count in (0, entries):
        return torch.full_like(values_N, bool(count), dtype=torch.bool)
    cut = values_N.kthvalue(entries - count + 1).values
    above_N = values_N > cut
    ties_N = values_N == cut
    return above_N | (ties_N & (ties_N.cumsum(0, dtype=torch.int32) <= count - above_N.sum()))


def keep_of_neighbours(*, values_RC: Tensor, count: int, of: int) -> Tensor:
    """Keep the `count` entries worth most of each `of` neighbours in a row (N:M sparsity).

    Args:
        values_RC: Worth of each entry; `of` divides `C`.
        count: Entries kept of each group, from 0 to `of`.
        of: Neighbours in a group.

    Returns:
        Binary ``(R, C)``.

    >>> keep_of_neighbours(values_RC=torch.tensor([[4.0, 1.0, 3.0, 2.0]]), count=2, of=4).int().tolist()
    [[1, 0, 1, 0]]
    """
    groups = values_RC.reshape(-1, of)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(count, dim=1).indices, True)
    return kept.view(values_RC.shape)
