"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626; gradual, Zhu and Gupta 2017, arXiv 1710.01878)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bplightning.contracts.capabilities import OneShot
from bplightning.masks.masking import Mask
from bplightning.strategies.shared.top_k import TopK


class Magnitude(TopK, OneShot):
    """The largest weights, an exact fraction; for comparison.

    Keeps the weights of largest absolute value, a tile by the mean of its own; learns nothing about it.

    The baseline of the movement papers (arXiv 2005.07683, section 3). Weights below the cut get no gradient, so what is
    pruned returns only where others shrink.
    """

    learns_scores: ClassVar[bool] = False
    by_training: ClassVar[bool] = True

    def worth(self, mask: Mask) -> Tensor:
        return mask.pooled(lambda member: member.weight(self.layout.model).abs())
