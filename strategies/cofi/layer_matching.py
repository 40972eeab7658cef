"""Learning from a teacher's layers where it is not known which layers stay (Xia et al. 2022, arXiv 2204.00408, 3.2).

Legend: `B` batch, `L` tokens, `H` hidden size, `S` layers of the student, `T` layers of the teacher, learned from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TAUGHT = 4
"""How many of the teacher's layers are learned from: of twelve the third, sixth, ninth and last."""


def taught_layers(count: int) -> list[int]:
    """The layers, counted from 1, that are learned from, evenly spaced up to the last.

    >>> taught_layers(12), taught_layers(6), taught_layers(2)
    ([3, 6, 9, 12], [2, 3, 5, 6], [1, 2])
    """
    taught = min(TAUGHT, count)
    return [-(-count * index // taught) for index in range(1, taught + 1)]


def match_layers(distances_TS: Tensor, live_S: Tensor) -> Tensor:
    """Which layer of the student learns from each of the teacher's: the nearest that lives, from the top down.

    Those of lower layers of the teacher lie strictly below. The host does not wait.

    Args:
        distances_TS: How far each layer of the student is from each of the teacher.
        live_S: Which of the student's layers there are.

    Returns:
        Indices ``(T,)``; -1 where none is left.

    >>> far = torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 0.0]])
    >>> match_layers(far, torch.tensor([True, True, True])).tolist()
    [1, 2]
    >>> match_layers(far, torch.tensor([True, True, False])).tolist()
    [-1, 0]
    """
    layers = torch.arange(len(live_S), device=live_S.device)
    below = torch.full_like(layers[0], len(live_S))
    found: list[Tensor] = []
    for distance_S in reversed(distances_TS.detach()):
        free_S = live_S & (layers < below)
        nearest = distance_S.masked_fill(~free_S, torch.inf).argmin()
        below = torch.where(free_S.any(), nearest, 0)  # where there is none, there is none further down
        found.insert(0, torch.where(free_S.any(), nearest, -1))
    return torch.stack(found)


def layer_distance(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    map_HH: Tensor,
    live_S: Tensor,
    mask_BL: Tensor | None,
) -> Tensor:
    """The sum, over the teacher's layers, of the mean squared distance of the layer that learns from each.

    Args:
        student: Hidden states ``(B, L, H)`` after each of the student's layers.
        teacher: The same after each of the teacher's layers that are learned from, of the same width.
        map_HH: What the student's are mapped by.
        live_S: Which of the student's layers there are.
        mask_BL: 1 where a token is, 0 where padding is, which is left out; `None` for tokens throughout.

    Returns:
        A 0-d tensor; 0 where no layer lives.
    """
    kept_BL = torch.ones_like(student[0][..., 0]) if mask_BL is None else mask_BL
    kept_BL = kept_BL.float()

    def distance(mapped_BLH: Tensor, wanted_BLH: Tensor) -> Tensor:
        square_BL = (mapped_BLH.float() - wanted_BLH.float()).square().mean(-1)
        return (square_BL * kept_BL).sum() / kept_BL.sum()

    with torch.no_grad():  # which pair is nearest needs no gradient, and all pairs' would take much memory
        mapped = [states @ map_HH.T for states in student]
        distances = [torch.stack([distance(states, wanted) for states in mapped]) for wanted in teacher]
        matched_T = match_layers(torch.stack(distances), live_S)
    chosen_TBLH = torch.stack(list(student)).index_select(0, matched_T.clamp(min=0)) @ map_HH.T
    chosen_T = torch.stack([distance(states, wanted) for states, wanted in zip(chosen_TBLH, teacher, strict=True)])
    return torch.where(matched_T >= 0, chosen_T, 0).sum()
