"""Retraining-free pruning (Kwon et al. 2022, arXiv 2204.09656)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bplightning.contracts.target import NO_TARGET, Target
from bplightning.layout.resizing import Group, writer_columns
from bplightning.strategies.post_training.gate_tuning import tuned_gates
from bplightning.strategies.shared.budgeted import Budgeted
from bplightning.strategies.shared.mask_search import rearranged


class PostTraining(Budgeted):
    """Heads and units, in minutes, without training (`prune`).

    Prunes the heads and units of a fine-tuned model in minutes, without training it (`prune`).

    Three steps of *A Fast Post-Training Pruning Framework for Transformers* (Kwon et al. 2022, arXiv 2204.09656). What
    the loss misses of a head or unit is the diagonal of the Fisher matrix of its mask, the sum over examples of the
    squared gradient (equations 5 to 8); for each number of heads the budget that is left is filled with units, and the
    number that loses least is taken (algorithm 1). Within each layer what goes together is then chosen by the layer's
    whole block of the matrix (section 4.2). Last, layer by layer, what is kept is multiplied by the numbers with which
    the layer comes nearest to what it gave, by least squares (section 4.3); they are folded into the weights.

    It departs from the published code in this. Gradients are those of single examples, where that has those of batches,
    and of the mean loss over the rows of a batch, times their number. All heads, and all units, of the model are in one
    ranking, by what is lost a weight. Least squares are solved exactly, a little damped, where that iterates; they look
    at all tokens, not the first alone, and have no intercept; the first layer's attention is tuned, too; and a layer
    whose equations say nothing is left as it is, where that stops. A layer that is computed several times in a pass
    (ALBERT) is not tuned.

    Args:
        target: What to keep: FLOPs, half of them by default, or a speed-up as measured.
        rearrange: Whether what goes is chosen anew within each layer.
        tune: Whether what stays is multiplied by numbers found by least squares.
    """

    def __init__(self, target: Target = NO_TARGET, rearrange: bool = True, tune: bool = True) -> None:
        super().__init__(target)
        self.rearrange = rearrange
        self.tune = tune
        self.puts_back = not tune  # gates make up for what went

    def losses(self, gradients_EN: Tensor) -> Tensor:
        return gradients_EN.double().square().sum(0)

    def refine(
        self,
        kept: dict[str, Tensor],
        gradients: Mapping[str, Tensor],
        groups: list[Group],
        batches: Iterable[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        if self.rearrange:
            kept = {name: rearranged(kept_N=kept_N, gradients_EN=gradients[name]) for name, kept_N in kept.items()}
        if self.tune:
            gates = tuned_gates(self.layout.model, groups, kept, batches)
            for group in groups:
                self._fold(group, kept[group.name], gates[group.name])
        return kept

    @torch.no_grad()
    def _fold(self, group: Group, kept_N: Tensor, gates_N: Tensor) -> None:
        """Multiply the columns of what is kept by its gates."""
        weight_OC = group.members[-1].weight(self.layout.model)
        for index in kept_N.nonzero():
            columns = writer_columns(group, index.to(weight_OC.device))
            weight_OC[:, columns] *= gates_N[index].to(weight_OC)
