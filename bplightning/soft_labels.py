"""The soft-label loss of distillation, a pure function.

Legend: `K` outcomes that one distribution is over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def soft_label_loss(*, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, the mean over all distributions.

    Args:
        student: Logits ``(..., K)``.
        teacher: Logits of the same shape.
        temperature: `T`.

    >>> same = torch.tensor([[2.0, 0.0]])
    >>> soft_label_loss(student=same, teacher=same + 5, temperature=2.0).item()
    0.0
    """
    own, wanted = (log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    terms = wanted.exp() * (wanted - own)
    possible = wanted > -torch.inf  # what a model rules out altogether (Marian's padding) says nothing
    return temperature**2 * torch.where(possible, terms, 0.0).sum(-1).mean()
