"""What a weight is worth by Wanda, and which weights of a matrix then stay: pure functions.

Wanda (Sun, Liu, Bair, Kolter 2023, arXiv 2306.11695) multiplies a weight's magnitude by the norm of the input feature
that it meets, and compares it with the weights of its own output.

Legend: `O` out features, `I` in features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bplightning.errors import UserError
from bplightning.masks.selection import keep_of_neighbours


def wanda_scores(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """``|W_ij| * ||X_j||_2`` (arXiv 2306.11695, equation 1).

    Args:
        weight_OI: The weight.
        norm_I: Norm of each input feature over all calibration tokens, 0 or more.

    Returns:
        ``(O, I)``, in the wider of both precisions.

    >>> wanda_scores(torch.tensor([[4.0, -1.0], [0.5, 2.0]]), torch.tensor([1.0, 8.0])).tolist()
    [[4.0, 8.0], [0.5, 16.0]]
    """
    return weight_OI.abs() * norm_I


def keep_per_row(scores_OI: Tensor, density: float) -> Tensor:
    """Keep the weights worth most of each row, as many as come nearest to a density, a half upwards.

    Args:
        scores_OI: Worth of each weight.
        density: Fraction of each row to keep, in [0, 1].

    Returns:
        Binary ``(O, I)``.

    Raises:
        UserError: The density is not in [0, 1].

    >>> keep_per_row(torch.tensor([[4.0, 8.0], [16.0, 0.5]]), 0.5).int().tolist()
    [[0, 1], [1, 0]]
    """
    if not 0 <= density <= 1:
        raise UserError(f"density is {density:g}; it is the fraction of each row kept and must be in [0, 1].")
    columns = scores_OI.shape[1]
    best = scores_OI.topk(int(density * columns + 0.5), dim=1).indices
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, best, True)


def keep_n_of_m(scores_OI: Tensor, n: int, m: int) -> Tensor:
    """Keep the `n` weights worth most of each `m` neighbours in a row.

    Args:
        scores_OI: Worth of each weight.
        n: Weights kept of each group, from 0 to `m`.
        m: Neighbours in a group; divides `I`.

    Returns:
        Binary ``(O, I)``.

    Raises:
        UserError: There are no such groups.

    >>> keep_n_of_m(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2, 4).int().tolist()
    [[1, 0, 1, 0]]
    """
    columns = scores_OI.shape[1]
    if not (m >= 1 and 0 <= n <= m) or columns % m:
        raise UserError(
            f"{n}:{m} does not suit rows of {columns} weights: the first number must be from 0 to the second, and the "
            "second must divide the row."
        )
    return keep_of_neighbours(values_RC=scores_OI, count=n, of=m)
