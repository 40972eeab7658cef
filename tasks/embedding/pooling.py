"""From the last hidden states of an encoder to one vector a text.

Legend: `B` texts of a batch, `L` tokens, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

Mode = Literal["mean", "cls", "last"]
"""How tokens become one vector: their mean, the first one, or the last one."""
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class Pooling:
    """What follows the encoder of an embedding model.

    Attributes:
        mode: `Mode`.
        normalized: Whether vectors have length 1.
        dot: Whether vectors are compared by their dot product; else by its cosine. The same where they are normalized.
        query_prompt: What each query begins with.
        passage_prompt: What each passage begins with.
        prompt: What each text of `predict` begins with.
        from_folder: Whether the model's own folder says so.
    """

    mode: str = "mean"
    normalized: bool = True
    dot: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    prompt: str = ""
    from_folder: bool = False
    recorded: Mapping[str, object] = field(default_factory=dict)
    """``config_sentence_transformers.json`` as the folder has it."""

    def __call__(self, states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """The vectors, ``(B, H)``.

        Args:
            states_BLH: The encoder's last hidden states.
            mask_BL: 1 where a token is, 0 where padding is.
        """
        pooled_BH = pool(states_BLH, mask_BL, self.mode)
        return normalize(pooled_BH, dim=-1) if self.normalized else pooled_BH

    def comparable(self, vectors_BH: Tensor) -> Tensor:
        """Vectors whose dot products are the similarities."""
        return vectors_BH if self.dot else normalize(vectors_BH, dim=-1)


def pool(states_BLH: Tensor, mask_BL: Tensor, mode: str) -> Tensor:
    """One vector a text, ``(B, H)``, as sentence-transformers' Pooling gives it.

    Args:
        states_BLH: Hidden states.
        mask_BL: 1 where a token is, 0 where padding is, on either side.
        mode: One of `MODES`.

    >>> states = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> [pool(states, torch.tensor([[1, 1, 0]]), mode).item() for mode in MODES]
    [2.0, 1.0, 3.0]
    """
    if mode == "mean":
        weights_BL1 = mask_BL[..., None].to(states_BLH.dtype)
        return (states_BLH * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1e-9)
    places_BL = mask_BL * torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)
    place_B = mask_BL.int().argmax(1) if mode == "cls" else places_BL.argmax(1)
    return states_BLH[torch.arange(len(states_BLH), device=states_BLH.device), place_B]
