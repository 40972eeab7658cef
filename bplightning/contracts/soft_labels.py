"""The soft-label loss of distillation, a pure function.

Legend: `K` outcomes that one distribution is over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def soft_label_loss(*, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, the mean over all distributions there are.

    Args:
        student: Logits ``(..., K)``.
        teacher: Logits of the same shape; minus infinity where an outcome is ruled out, and all along the last axis
            where there is no distribution, as in padding. (Left in place, and not taken out: a mask would make the
            host wait for the device.)
        temperature: `T`.

    >>> same = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> soft_label_loss(student=same, teacher=same + 5, temperature=2.0).item()
    0.0
    """
    there = (teacher != -torch.inf).any(-1)  # so is what is no number: the loss must show it
    own, wanted = (
        log_softmax(logits.float().masked_fill(~there[..., None], 0.0) / temperature, dim=-1)
        for logits in (student, teacher)
    )
    terms = torch.where(wanted == -torch.inf, 0.0, wanted.exp() * (wanted - own))
    return temperature**2 * terms.sum() / there.sum()
