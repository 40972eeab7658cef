"""Which heads and units to keep within a budget, by what the loss would lose without them: pure functions.

Kwon et al. 2022, *A Fast Post-Training Pruning Framework for Transformers* (arXiv 2204.09656), sections 4.1 and 4.2.

Legend: `E` examples, `N` heads or units of a layer, or of all layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def best_counts(
    *, head_losses_N: Tensor, unit_losses_N: Tensor, share: Callable[[int], Callable[[int], float]], budget: float
) -> tuple[int, int] | None:
    """How many of the best heads, and of the best units, to keep, so that the least is lost within a budget.

    For each number of heads the budget that is left is filled with units (arXiv 2204.09656, algorithm 1).

    Args:
        head_losses_N: What is lost without each head, in the order that they are kept in, the best first.
        unit_losses_N: The same of the units.
        share: From a number of heads, the best ones, to the share of the dense network's cost that is left with a
            number of units. Both must not fall.
        budget: The greatest share allowed.

    Returns:
        Heads and units; `None` where not even none of both are within the budget.

    >>> cost = lambda heads: lambda units: (4 * heads + units) / 16
    >>> losses = torch.tensor([9.0, 1.0]), torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5])
    >>> best_counts(head_losses_N=losses[0], unit_losses_N=losses[1], share=cost, budget=0.5)
    (1, 4)
    """
    lost_heads, lost_units = (_lost_after(losses_N) for losses_N in (head_losses_N, unit_losses_N))
    best: tuple[float, int, int] | None = None
    for heads in range(len(head_losses_N) + 1):
        of = share(heads)
        if of(0) > budget:
            break
        units = _most(of, len(unit_losses_N), budget)
        lost = lost_heads[heads] + lost_units[units]
        if best is None or lost < best[0]:
            best = lost, heads, units
    return None if best is None else best[1:]


def even_counts(
    *, heads: int, units: int, share: Callable[[int], Callable[[int], float]], budget: float
) -> tuple[int, int] | None:
    """How many heads and units to keep, of both the same part as nearly as heads go, and of units what then fits.

    Args:
        heads: How many there are.
        units: How many there are.
        share: As `best_counts` has it.
        budget: The greatest share allowed.

    Returns:
        Heads and units; `None` where not even none of both are within the budget.

    >>> even_counts(heads=2, units=8, share=lambda heads: lambda units: (4 * heads + units) / 16, budget=0.6)
    (1, 5)
    """
    for count in range(heads, -1, -1):
        if share(count)(units * count // max(heads, 1)) <= budget:
            return count, _most(share(count), units, budget)
    return None


def _lost_after(losses_N: Tensor) -> list[float]:
    """What is lost with the first 0, 1, ... of all kept."""
    total = losses_N.double().sum()
    return [float(total), *(total - losses_N.double().cumsum(0)).tolist()]


def _most(share: Callable[[int], float], last: int, budget: float) -> int:
    """The greatest count whose share is within the budget; that of 0 is."""
    low, high = 0, last
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(middle) <= budget else (low, middle - 1)
    return low


def rearranged(*, kept_N: Tensor, gradients_EN: Tensor) -> Tensor:
    """As many of a layer kept, but so that what goes together is missed least.

    The loss misses a set of heads or units by about the sum over the examples of the square of its summed gradients:
    the Fisher matrix of the layer, between any two, where the search knows its diagonal alone. Each that was kept, the
    least first, is offered to the set that goes, and that which the set is then best without is kept instead
    (arXiv 2204.09656, section 4.2).

    Args:
        kept_N: Binary, as the search found it.
        gradients_EN: Gradient of each example's loss by the mask.

    Returns:
        Binary ``(N,)``, of as many.

    >>> gradients = torch.tensor([[1.0, -1.1, 1.2]])
    >>> rearranged(kept_N=torch.tensor([False, True, True]), gradients_EN=gradients).tolist()
    [False, True, True]
    >>> rearranged(kept_N=torch.tensor([False, False, True]), gradients_EN=gradients[:, [0, 2, 1]]).tolist()
    [True, False, False]
    """
    fisher_NN = gradients_EN.double().T @ gradients_EN.double()
    own_N = fisher_NN.diagonal()
    gone_N = ~kept_N
    if not gone_N.any():
        return kept_N.clone()
    with_gone_N = fisher_NN[gone_N].sum(0)  # of each with the sum of all that go
    for offered in own_N.argsort(stable=True).tolist():
        if not kept_N[offered]:
            continue
        gone_N[offered] = True
        with_gone_N += fisher_NN[offered]
        change_N = (own_N - 2 * with_gone_N).masked_fill(~gone_N, torch.inf)
        back = int(change_N.argmin())
        gone_N[back] = False
        with_gone_N -= fisher_NN[back]
    return ~gone_N


def least_squares_gates(
    *, squares_CC: Tensor, targets_OC: Tensor, weight_OC: Tensor, columns: int, damping: float
) -> Tensor:
    """The real-valued gates of what is kept of a layer with which it comes nearest to what it is to give.

    ``min over m of sum over tokens |W (m * h) - t|^2`` (arXiv 2204.09656, section 4.3), `h` the input of the output or
    down projection and `t` its target, by the normal equations; near to 1 where calibration says nothing. Of the tokens
    only their products are needed.

    Args:
        squares_CC: ``sum over tokens h h^T``.
        targets_OC: ``sum over tokens t h^T``.
        weight_OC: The columns of the projection that are kept.
        columns: How many of them are one head or unit.
        damping: How much gates are held to 1, in parts of the mean square of a head's or unit's output, above 0.

    Returns:
        ``(N,)`` in float64, of the heads or units that are kept.
    """
    weight_OC = weight_OC.double()
    size = weight_OC.shape[1] // columns
    grams_CC = weight_OC.T @ weight_OC
    a_NN = (squares_CC.double() * grams_CC).view(size, columns, size, columns).sum((1, 3))
    b_N = (targets_OC.double() * weight_OC).sum(0).view(size, columns).sum(1)
    scale = a_NN.diagonal().mean()
    if not scale > 0:
        return torch.ones_like(b_N)
    # Held to 1: the damping pulls at the difference from it.
    a_NN.diagonal().add_(damping * scale)
    return torch.linalg.solve(a_NN, b_N + damping * scale)
