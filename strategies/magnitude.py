"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626; gradual, Zhu and Gupta 2017, arXiv 1710.01878)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bplightning.masking import Mask
from bplightning.strategies.top_k import TopK


class Magnitude(TopK):
    """Keeps the weights of largest absolute value, a tile by the mean of its own; learns nothing about it.

    The baseline of the movement papers (arXiv 2005.07683, section 3). Weights below the cut get no gradient, so what is
    pruned returns only where others shrink.

    Args:
        density: Fraction of weights kept at the end of the schedule, in (0, 1]. An N:M granularity keeps its own.
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), N:M
            such as 2:4, head (attention) or unit (feed-forward). Default: element; a decoder's as the encoder's.
        scope: Where weights compete: `local`, within each matrix, which all reach the density; or `global`, in one
            ranking of the whole model.
        initial_warmup: Length of training before pruning begins, in multiples of the learning-rate warm-up.
        final_warmup: Length of training after the density is reached, in multiples of the learning-rate warm-up.
        freeze_masks: Whether masks stand still after the density is reached, so that only weights still learn.
        refresh_every: Optimizer steps between two choices of what to keep, 1 or more.
    """

    learns_scores: ClassVar[bool] = False

    def __init__(
        self,
        density: float = 0.25,
        granularity: dict[str, str] | None = None,
        scope: Literal["local", "global"] = "local",
        initial_warmup: float = 1.0,
        final_warmup: float = 2.0,
        freeze_masks: bool = False,
        refresh_every: int = 1,
    ) -> None:
        super().__init__(density, granularity, scope, initial_warmup, final_warmup, freeze_masks, refresh_every)

    def worth(self, mask: Mask) -> Tensor:
        return mask.pooled(self.layout.model, torch.abs)
