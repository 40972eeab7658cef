"""Which structures of a linear layer to remove, and what the others must become then: second-order, one at a time.

A layer computes ``W X``. With some columns of `W` gone, the others are to give what all of them gave, as nearly as they
can: least squares, whose Hessian is ``H = X X^T`` for every row of `W`. ZipLM (Kurtic, Frantar, Alistarh 2023, arXiv
2302.04089, section 3.1) removes the structure that costs least, lets the others make up for it, and so on, by the rules
of the Optimal Brain Surgeon for a set `S` of columns (its equations 2 and 3):

- cost: ``sum over rows i of W_iS ((H^-1)_SS)^-1 W_iS^T``;
- update: ``W -= W_:S ((H^-1)_SS)^-1 (H^-1)_S:``;
- then `S` leaves the problem: ``H^-1 -= (H^-1)_:S ((H^-1)_SS)^-1 (H^-1)_S:``, one step of block elimination.

The updates are exact, so costs add up to the whole error, and what is left after many removals is what one refit of the
columns that stay gives (`refit`). So no weights are kept while structures go: their order and the errors say it all.

Legend: `O` out features, `I` in features, `S` structures (heads or units), `C` columns of one, ``I = S C``, `N` tokens,
`K` columns kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINK_EVERY = 128
"""Removals after which what is gone leaves the matrices, too: each removal then touches less memory."""


class InputMoments:
    """Mean and products of what a linear layer reads, summed up batch by batch.

    Products are computed in the precision of the inputs (single at least) and summed in double precision.

    Args:
        features: Columns ``I``.
        device: Where inputs are.

    Attributes:
        count: Tokens seen.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.count = 0
        self._sum_I = torch.zeros(features, dtype=torch.float64, device=device)
        self._products_II = torch.zeros(features, features, dtype=torch.float64, device=device)

    def update(self, inputs_NI: Tensor) -> None:
        """Add the inputs of some tokens."""
        inputs_NI = inputs_NI.to(torch.promote_types(inputs_NI.dtype, torch.float32))
        self.count += len(inputs_NI)
        self._sum_I += inputs_NI.sum(0, dtype=torch.float64)
        self._products_II += (inputs_NI.T @ inputs_NI).double()

    def mean(self) -> Tensor:
        """The mean input, float64 ``(I,)``."""
        return self._sum_I / self.count

    def hessian(self, *, centered: bool, damping: float, columns_K: Tensor | None = None) -> Tensor:
        """``H``, the mean of ``x x^T`` with something added to the diagonal, float64 ``(I, I)``, or ``(K, K)``.

        Args:
            centered: Whether ``x`` is taken less its mean: a layer with a bias can make up for the mean with that, as
                with one more column that never goes, and only what varies is left to the weights (`refit_bias`).
            damping: What is added, as a part of the diagonal's mean.
            columns_K: The columns that are left, where some are gone: what those meet, often nothing, does not count.
        """
        hessian_II, mean_I = self._products_II / self.count, self.mean()
        if columns_K is not None:
            hessian_II, mean_I = hessian_II[columns_K][:, columns_K], mean_I[columns_K]
        if centered:
            hessian_II -= torch.outer(mean_I, mean_I)
        diagonal_I = hessian_II.diagonal()
        diagonal_I += damping * diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return hessian_II


@dataclass(frozen=True)
class Removals:
    """What goes, in what order.

    Attributes:
        order: Structures, the first to go first.
        errors: Squared error of the output over the squared output, for 0, 1, ... up to all of them removed: it rises
            from 0 to 1.
    """

    order: tuple[int, ...]
    errors: tuple[float, ...]


def structure_costs(*, weight_OI: Tensor, inverse_II: Tensor, columns: int) -> Tensor:
    """What the output's squared error grows by with each structure, if the others make up for it: ``(S,)``.

    Args:
        weight_OI: The weight.
        inverse_II: ``H^-1``.
        columns: ``C``; structures lie side by side.

    >>> identity = torch.eye(4, dtype=torch.float64)
    >>> structure_costs(weight_OI=torch.tensor([[1.0, 2, 3, 4]]).double(), inverse_II=identity, columns=2).tolist()
    [5.0, 25.0]
    """
    if columns == 1:
        return weight_OI.square().sum(0) / inverse_II.diagonal()
    structures = weight_OI.shape[1] // columns
    blocks = inverse_II.view(structures, columns, structures, columns).diagonal(dim1=0, dim2=2)
    factor_SCC = torch.linalg.cholesky(blocks.permute(2, 0, 1))
    weight_SCO = weight_OI.T.reshape(structures, columns, -1)
    return torch.linalg.solve_triangular(factor_SCC, weight_SCO, upper=False).square().sum((1, 2))


def eliminate(*, weight_OI: Tensor, inverse_II: Tensor, first: int, columns: int) -> None:
    """Remove one structure, in place: its columns of the weight become zero, the others make up for it.

    Args:
        weight_OI: The weight.
        inverse_II: ``H^-1``. Its rows and columns of the structure become those of the identity, so that it may stay
            where it is, alone.
        first: First column of the structure.
        columns: ``C``.
    """
    own = slice(first, first + columns)
    gain_CI = torch.linalg.solve(inverse_II[own, own], inverse_II[own])
    weight_OI.addmm_(weight_OI[:, own].clone(), gain_CI, alpha=-1)
    inverse_II.addmm_(inverse_II[:, own].clone(), gain_CI, alpha=-1)
    weight_OI[:, own] = 0
    inverse_II[own] = 0
    inverse_II[:, own] = 0
    inverse_II[own, own].fill_diagonal_(1)


@torch.no_grad()
def removals(*, weight_OI: Tensor, hessian_II: Tensor, columns: int) -> Removals:
    """Remove structures one at a time, the cheapest first, until none is left.

    Args:
        weight_OI: The weight; left as it is.
        hessian_II: ``H``, positive definite.
        columns: ``C``, of each structure.

    Returns:
        The order, and the relative error at each size.
    """
    weight_OI = weight_OI.to(hessian_II.dtype).clone()
    total = ((weight_OI @ hessian_II) * weight_OI).sum()
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(hessian_II))
    here = torch.arange(weight_OI.shape[1] // columns, device=weight_OI.device)  # which structures the matrices have
    gone = torch.zeros_like(here, dtype=torch.bool)
    order: list[Tensor] = []
    costs: list[Tensor] = []
    for removed in range(len(here)):
        if removed and removed % SHRINK_EVERY == 0:
            stay = (~gone).nonzero().flatten()
            kept_K = (stay[:, None] * columns + torch.arange(columns, device=stay.device)).flatten()
            weight_OI, inverse_II = weight_OI[:, kept_K], inverse_II[kept_K][:, kept_K]
            here, gone = here[stay], gone[stay]
        costs_S = structure_costs(weight_OI=weight_OI, inverse_II=inverse_II, columns=columns)
        cost, cheapest = costs_S.masked_fill(gone, torch.inf).min(0)
        order.append(here[cheapest])
        costs.append(cost)
        gone[cheapest] = True
        eliminate(weight_OI=weight_OI, inverse_II=inverse_II, first=int(cheapest) * columns, columns=columns)
    if not order:
        return Removals((), (0.0,))
    summed = torch.stack(costs).cumsum(0) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return Removals(tuple(torch.stack(order).tolist()), (0.0, *summed.tolist()))


@torch.no_grad()
def refit(*, weight_OI: Tensor, hessian_II: Tensor, kept_K: Tensor) -> Tensor:
    """The columns that stay, such that the output changes least: ``W H_:K (H_KK)^-1``, in the Hessian's precision.

    Args:
        weight_OI: The weight with all columns.
        hessian_II: ``H``.
        kept_K: Columns that stay.

    Returns:
        ``(O, K)``.
    """
    toward_KO = hessian_II[kept_K] @ weight_OI.to(hessian_II.dtype).T
    return torch.cholesky_solve(toward_KO, torch.linalg.cholesky(hessian_II[kept_K][:, kept_K])).T


@torch.no_grad()
def refit_bias(*, bias_O: Tensor, before_OI: Tensor, after_OI: Tensor, mean_I: Tensor) -> Tensor:
    """The bias with which the mean output is what it was.

    Args:
        bias_O: The bias.
        before_OI: The weight that it went with.
        after_OI: The weight that it is to go with.
        mean_I: The mean input.

    Returns:
        ``(O,)``, in the mean's precision.
    """
    return bias_O.to(mean_I.dtype) + (before_OI.to(mean_I.dtype) - after_OI.to(mean_I.dtype)) @ mean_I
