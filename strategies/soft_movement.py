"""Soft movement pruning (Sanh et al. 2020, arXiv 2005.07683) at any granularity (Lagunas et al. 2021, 2109.04838)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bplightning.errors import UserError
from bplightning.granularity import FALLBACKS, check_roles
from bplightning.layout import PrunableLayout
from bplightning.scheduled import ScheduledStrategy
from bplightning.strategies.steering import Steering
from bplightning.strategy import Progress

SCORE_LEARNING_RATE = 1e-2
"""The papers' learning rate of scores."""

SCORE_TRAVEL = 30.0
"""How far scores can travel in a run whose score learning rate follows from its length: times the way to the cut."""


class SoftMovement(ScheduledStrategy):
    """Keeps the tiles whose sigmoid(score) is above a threshold that rises while a penalty pushes scores down.

    The gradient of a score is how much the loss wants its weights to move away from zero, summed over the tile,
    straight through the threshold; the penalty is ``lambda(t) * mean(sigmoid(S))``, averaged over the masks of a role
    and then over the roles (arXiv 2005.07683, section 3; arXiv 2109.04838, section 3.2). It departs from the published
    code in having no least number of weights kept per matrix: whole heads and whole layers may go.

    Args:
        regularization: Weight lambda of the penalty that pushes scores down: greater prunes more; the density reached
            follows from it. The papers take 5 to 30 for blocks and 400 for single elements; runs of
            few steps need more.
        final_score_threshold: Cut-off on sigmoid(score) at the end of the schedule, in (0, 0.5).
        initial_score_threshold: Cut-off on sigmoid(score) at its beginning, in [0, 0.5).
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), head
            (attention) or unit (feed-forward). Default: the strategy's own, element for soft-movement, 32x32 and unit
            for hybrid; a decoder's as the encoder's.
        score_learning_rate: Learning rate of the scores. Default: 1e-2 as in the papers, and more in runs of fewer than
            about 6,600 optimizer steps, in which scores could not travel far enough.
        initial_warmup: Length of training before pruning begins, in multiples of the learning-rate warm-up.
        final_warmup: Length of training after the threshold is reached, in multiples of the learning-rate warm-up.
        freeze_masks: Whether masks stand still after the threshold is reached, so that only weights still learn.
        role_weights: Factor of a role's share of the penalty, by role. Default: 1; a decoder's as the encoder's.
        target_density: Fraction of the prunable weights to keep, in (0, 1): the penalty is steered there, from
            `regularization` on, masks stand still from the end of the schedule. Default: none, what stays follows from
            `regularization`.
    """

    score_threshold: Tensor
    penalty_weight: Tensor
    density_before_snap: Tensor

    def __init__(
        self,
        regularization: float = 20.0,
        final_score_threshold: float = 0.1,
        initial_score_threshold: float = 0.0,
        granularity: dict[str, str] | None = None,
        score_learning_rate: float | None = None,
        initial_warmup: float = 1.0,
        final_warmup: float = 10.0,
        freeze_masks: bool = False,
        role_weights: dict[str, float] | None = None,
        target_density: float | None = None,
    ) -> None:
        super().__init__(granularity, initial_warmup, final_warmup, freeze_masks or target_density is not None)
        for name, value in (("initial", initial_score_threshold), ("final", final_score_threshold)):
            if not 0 <= value < 0.5 or (name == "final" and value == 0):
                raise UserError(
                    f"{name}_score_threshold is {value:g}; it is a cut-off on sigmoid(score), which starts at 0.5, and "
                    f"must be in {'(0, 0.5)' if name == 'final' else '[0, 0.5)'}. The papers end at 0.1."
                )
        if regularization < 0:
            raise UserError(
                f"regularization is {regularization:g}; it must be 0 or more. The papers take 5 to 30 for blocks."
            )
        if target_density is not None and not 0 < target_density < 1:
            raise UserError(f"target_density is {target_density:g}; it is the fraction kept and must be in (0, 1).")
        if target_density is not None and regularization == 0:
            raise UserError("regularization is 0, from which no penalty can be steered: give one above 0.")
        self.regularization = regularization
        self.target_density = target_density
        self.thresholds = initial_score_threshold, final_score_threshold
        self.score_learning_rate = score_learning_rate
        self.role_weights = dict(role_weights or {})
        check_roles("role_weights", self.role_weights)
        # On the device, so that a training step never waits for the host, and in the state_dict, so that it says all.
        self.register_buffer("score_threshold", torch.tensor(initial_score_threshold))
        self.register_buffer("penalty_weight", torch.tensor(0.0))
        self.steering: Steering | None = None
        if target_density is not None:
            self.register_buffer("density_before_snap", torch.tensor(1.0))

    def attach(self, layout: PrunableLayout) -> None:
        super().attach(layout)
        if self.target_density is not None:
            device = self.all_masks[0].kept.device
            cut, weight = logit(self.thresholds[1]), self.regularization
            self.steering = Steering(self.target_density, self.kept_above, final_cut=cut, weight=weight).to(device)

    def advance(self, progress: Progress) -> None:
        start, end = self.window(progress)
        if self.steering is not None and progress.step <= end:
            self.steering.advance(step=progress.step, start=start, end=end)
        super().advance(progress)

    @torch.no_grad()
    def prune(self, amount: float, *, steps_after: int) -> None:
        initial, final = self.thresholds
        threshold = initial + (final - initial) * amount
        self.score_threshold.fill_(threshold)
        self.penalty_weight.fill_(self.regularization * threshold / final)
        if self.steering is not None:
            self.penalty_weight.copy_(self.steering.weight() * (amount > 0))
            if steps_after == 0:  # what steering left to do
                self.density_before_snap.copy_(self.kept_above(torch.full_like(self.score_threshold, logit(final))))
                self.score_threshold.copy_(self.steering.cut.sigmoid())
        for mask in self.all_masks:
            assert mask.scores is not None
            mask.set_grid(mask.scores.sigmoid() > self.score_threshold)

    @torch.no_grad()
    def kept_above(self, cut: Tensor) -> Tensor:
        """Fraction of all weights whose scores are above a cut, a 0-d tensor."""
        kept = [(mask.scores > cut).sum() * mask.weights_per_entry for mask in self.all_masks]  # type: ignore[operator]
        return torch.stack(kept).sum() / sum(mask.total_weights for mask in self.all_masks)

    def penalty(self) -> Tensor | None:
        means: dict[str, list[Tensor]] = {}
        for mask in self.all_masks:
            assert mask.scores is not None
            means.setdefault(mask.role, []).append(mask.scores.sigmoid().mean())
        shares = [self.role_weight(role) * torch.stack(values).mean() for role, values in means.items()]
        return self.penalty_weight * torch.stack(shares).mean()

    def role_weight(self, role: str) -> float:
        """Factor of a role's share of the penalty."""
        return self.role_weights.get(role, self.role_weights.get(FALLBACKS.get(role, role), 1.0))

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        learning_rate = self.score_learning_rate
        if learning_rate is None:
            # Adam moves a score by at most about its learning rate a step; the way is from 0 to logit(threshold).
            way = -logit(self.thresholds[1])
            learning_rate = max(SCORE_LEARNING_RATE, SCORE_TRAVEL * way / total_steps)
        scores = [mask.scores for mask in self.all_masks]
        return [{"params": scores, "lr": learning_rate, "weight_decay": 0.0, "name": "scores"}]

    def metrics(self) -> dict[str, Tensor | float]:
        if self.steering is None:
            return {"score_threshold": self.score_threshold}
        steered = {"penalty_weight": self.penalty_weight, "target_cut": self.steering.cut}
        return {"score_threshold": self.score_threshold, **steered}


def logit(probability: float) -> float:
    """The score whose sigmoid is `probability`."""
    return math.log(probability / (1 - probability))
