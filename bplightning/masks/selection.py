"""Selecting the entries of a grid with the highest values: exactly as many as asked for, also with ties.

Legend: `N` entries, `R`, `C` grid rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_largest(*, values_N: Tensor, density: float) -> Tensor:
    """Keep the entries with the highest values, as many as are nearest to a density (halves are rounded up).

    Of equal entries the earlier ones are kept. The host does not wait for the device.

    Args:
        values_N: Value of each entry.
        density: Fraction to keep, in [0, 1].

    Returns:
        Binary ``(N,)``.

    >>> keep_largest(values_N=torch.tensor([1.0, 5.0, 5.0, 5.0]), density=0.5).int().tolist()
    [0, 1, 1, 0]
    """
    entries = values_N.numel()
    count = int(density * entries + 0.5)
    if count in (0, entries):
        return torch.full_like(values_N, bool(count), dtype=torch.bool)
    if count <= entries // 2:
        cut = values_N.topk(count, sorted=False).values.amin()
    else:
        cut = values_N.topk(entries - count + 1, largest=False, sorted=False).values.amax()
    above_N = values_N > cut
    ties_N = values_N == cut
    return above_N | (ties_N & (ties_N.cumsum(0, dtype=torch.int32) <= count - above_N.sum()))


def keep_within(*, values_N: Tensor, weights_N: Tensor, budget: int) -> Tensor:
    """Keep the entries with the highest values within a budget, where entries hold different numbers of weights.

    Of equal entries the earlier ones are kept. The host does not wait for the device.

    Args:
        values_N: Value of each entry.
        weights_N: Number of weights of each entry, integers.
        budget: Number of weights to keep.

    Returns:
        Binary ``(N,)``. The weights kept differ from the budget by half an entry at most.

    >>> values, weights = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1, 3, 4])
    >>> keep_within(values_N=values, weights_N=weights, budget=4).tolist()
    [True, True, False]
    """
    order_N = values_N.argsort(descending=True, stable=True)
    sizes_N = weights_N[order_N]
    fits_N = 2 * sizes_N.cumsum(0) - sizes_N <= 2 * budget  # in whole numbers: exact, on every device
    return torch.empty_like(fits_N).scatter_(0, order_N, fits_N)


def keep_of_neighbours(*, values_RC: Tensor, count: int, of: int) -> Tensor:
    """Keep the `count` highest of each `of` neighbours in a row (N:M sparsity).

    Args:
        values_RC: Value of each entry; `of` divides `C`.
        count: Entries kept in each group of neighbours, from 0 to `of`.
        of: Size of a group.

    Returns:
        Binary ``(R, C)``.

    >>> keep_of_neighbours(values_RC=torch.tensor([[4.0, 1.0, 3.0, 2.0]]), count=2, of=4).int().tolist()
    [[1, 0, 1, 0]]
    """
    groups = values_RC.reshape(-1, of)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(count, dim=1).indices, True)
    return kept.view(values_RC.shape)
