"""First-order Taylor pruning without training (Michel et al. 2019, arXiv 1905.10650; Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bplightning.contracts.target import NO_TARGET, Target
from bplightning.strategies.shared.budgeted import Budgeted
from bplightning.strategies.shared.mask_search import even_counts


class OneShotTaylor(Budgeted):
    """Heads and units by Taylor scores, without training.

    Prunes the heads and units that the loss misses least by the first term of its Taylor series, without training.

    Without a head or unit, whose mask is 1, an example's loss changes by about ``|dL/dm|``; the mean over examples is
    its importance (arXiv 1905.10650, equation 2, there of heads; arXiv 1906.10771 has the like of units). Heads compete
    with the heads of all layers, units with the units of all layers, and of both the same part is kept: importances of
    first order do not add up, so a trade of heads for units by their sums, as `PostTraining` makes it, would lose
    nearly all heads. It is the baseline to that. It departs from arXiv 1905.10650 in comparing importances as they
    are, where that divides those of a layer by their l2 norm first; with `per_layer_norm` it does so too.

    Args:
        target: What to keep: FLOPs, half of them by default, or a speed-up as measured.
        per_layer_norm: Whether importances of a layer are divided by their l2 norm before layers compete, so that no
            layer loses all for having small gradients.
    """

    def __init__(self, target: Target = NO_TARGET, per_layer_norm: bool = False) -> None:
        super().__init__(target)
        self.per_layer_norm = per_layer_norm

    def losses(self, gradients_EN: Tensor) -> Tensor:
        importance_N = gradients_EN.double().abs().mean(0)
        if not self.per_layer_norm:
            return importance_N
        return importance_N / importance_N.norm().clamp(min=torch.finfo(importance_N.dtype).tiny)

    def counts(
        self, lost_heads_N: Tensor, lost_units_N: Tensor, share: Callable[[int], Callable[[int], float]]
    ) -> tuple[int, int] | None:
        return even_counts(heads=len(lost_heads_N), units=len(lost_units_N), share=share, budget=self.size_target.share)
