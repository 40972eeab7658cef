"""How much each input of a layer's weights is worth, experts' by the tokens that are routed to them: pure functions.

Legend: `T` tokens, `K` experts a token goes to, `E` experts, `I` in features, `F` units of an expert, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def squared_norms(*, inputs_TI: Tensor, weights_T: Tensor | None = None) -> Tensor:
    """The squared norm of each input feature over tokens, each scaled first: ``||X_j * Gate||^2``.

    Args:
        inputs_TI: Inputs, a row a token.
        weights_T: What each token's are scaled by, such as its router weight; by default 1.

    Returns:
        Float64 ``(I,)``, so that sums over many batches, or over ranks in another order, choose the same weights.

    >>> import torch
    >>> squared_norms(inputs_TI=torch.tensor([[3.0, 1.0], [4.0, 0.0]]), weights_T=torch.tensor([1.0, 0.5])).tolist()
    [13.0, 1.0]
    """
    scaled_TI = inputs_TI.double()
    if weights_T is not None:
        scaled_TI = scaled_TI * weights_T.double()[:, None]
    return scaled_TI.square().sum(0)


def expert_units(*, inputs_TH: Tensor, up: tuple[Tensor, ...], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """What goes into an expert's down projection: ``act(x W_gate) * (x W_up)``.

    Args:
        inputs_TH: The tokens routed to it.
        up: Its up projections ``(F, H)``, the one that goes through the activation first.
        activation: The activation.

    Returns:
        ``(T, F)``.
    """
    gate_FH, *others = up
    units_TF = activation(functional.linear(inputs_TH, gate_FH))
    for other_FH in others:
        units_TF = units_TF * functional.linear(inputs_TH, other_FH)
    return units_TF


def routed(*, indices_TK: Tensor, weights_TK: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """The tokens that a router sends to an expert, and their router weights.

    Args:
        indices_TK: Experts that each token goes to.
        weights_TK: How much of each token's output is theirs.
        expert: The expert.

    Returns:
        Indices of the tokens and their weights, one each.

    >>> import torch
    >>> routed(indices_TK=torch.tensor([[0, 2], [2, 1]]), weights_TK=torch.tensor([[0.9, 0.1], [0.7, 0.3]]), expert=2)
    (tensor([0, 1]), tensor([0.1000, 0.7000]))
    """
    tokens, places = (indices_TK == expert).nonzero(as_tuple=True)
    return tokens, weights_TK[tokens, places]
