"""Soft movement pruning (Sanh et al. 2020, arXiv 2005.07683) at any granularity (Lagunas et al. 2021, 2109.04838)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from bplightning.errors import UserError
from bplightning.granularity import check_granularity, masks_of
from bplightning.layout import AttentionGroup, PrunableLayout
from bplightning.schedule import cubic, pruning_window
from bplightning.strategy import Progress, PruningStrategy

SCORE_LEARNING_RATE = 1e-2
"""The papers' learning rate of scores."""

SCORE_TRAVEL = 30.0
"""How far scores can travel in a run whose score learning rate follows from its length: times the way to the cut."""


class SoftMovement(PruningStrategy):
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
        attention: Granularity in attention: element, row, column, head, or a block such as 32x32 (rows x columns).
            Default: the strategy's own, element for soft-movement, 32x32 for hybrid.
        feed_forward: Granularity in feed-forward layers: element, row, column, unit, or a block such as 32x32.
            Default: the strategy's own, element for soft-movement, unit for hybrid.
        score_learning_rate: Learning rate of the scores. Default: 1e-2 as in the papers, and more in runs of fewer than
            about 6,600 optimizer steps, in which scores could not travel far enough.
        initial_warmup: Length of training before pruning begins, in multiples of the learning-rate warm-up.
        final_warmup: Length of training after the threshold is reached, in multiples of the learning-rate warm-up.
        attention_weight: Factor of attention's share of the penalty.
        feed_forward_weight: Factor of the feed-forward layers' share of the penalty.
    """

    attention_granularity: ClassVar[str] = "element"
    feed_forward_granularity: ClassVar[str] = "element"

    score_threshold: Tensor
    penalty_weight: Tensor

    def __init__(
        self,
        regularization: float = 20.0,
        final_score_threshold: float = 0.1,
        initial_score_threshold: float = 0.0,
        attention: str | None = None,
        feed_forward: str | None = None,
        score_learning_rate: float | None = None,
        initial_warmup: float = 1.0,
        final_warmup: float = 10.0,
        attention_weight: float = 1.0,
        feed_forward_weight: float = 1.0,
    ) -> None:
        super().__init__()
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
        self.regularization = regularization
        self.thresholds = initial_score_threshold, final_score_threshold
        self.attention = check_granularity(attention or self.attention_granularity)
        self.feed_forward = check_granularity(feed_forward or self.feed_forward_granularity)
        self.score_learning_rate = score_learning_rate
        self.initial_warmup = initial_warmup
        self.final_warmup = final_warmup
        self.weights = attention_weight, feed_forward_weight
        # On the device, so that a training step never waits for the host, and in the state_dict, so that it says all.
        self.register_buffer("score_threshold", torch.tensor(initial_score_threshold))
        self.register_buffer("penalty_weight", torch.tensor(0.0))

    def attach(self, layout: PrunableLayout) -> None:
        for group in layout.groups:
            granularity = self.attention if isinstance(group, AttentionGroup) else self.feed_forward
            for name, mask in masks_of(layout.model, group, granularity, binarize=self.keep):
                self.add_mask(name, mask, layout)
        self.role_weights = {group.role: self.weights[not isinstance(group, AttentionGroup)] for group in layout.groups}

    def keep(self, scores_RC: Tensor | None) -> Tensor:
        """The tiles to keep: those with sigmoid(score) above the threshold of this moment."""
        assert scores_RC is not None
        return scores_RC.sigmoid() > self.score_threshold

    def advance(self, progress: Progress) -> None:
        start, end = pruning_window(
            total_steps=progress.total_steps,
            warmup_steps=progress.warmup_steps,
            initial_warmup=self.initial_warmup,
            final_warmup=self.final_warmup,
        )
        initial, final = self.thresholds
        threshold = cubic(step=progress.step, start=start, end=end, initial=initial, final=final)
        self.score_threshold.fill_(threshold)
        self.penalty_weight.fill_(self.regularization * threshold / final)

    def penalty(self) -> Tensor | None:
        means: dict[str, list[Tensor]] = {}
        for mask in self.all_masks:
            assert mask.scores is not None
            means.setdefault(mask.role, []).append(mask.scores.sigmoid().mean())
        shares = [self.role_weights[role] * torch.stack(values).mean() for role, values in means.items()]
        return self.penalty_weight * torch.stack(shares).mean()

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        learning_rate = self.score_learning_rate
        if learning_rate is None:
            # Adam moves a score by at most about its learning rate a step; the way is from 0 to logit(threshold).
            way = -math.log(self.thresholds[1] / (1 - self.thresholds[1]))
            learning_rate = max(SCORE_LEARNING_RATE, SCORE_TRAVEL * way / total_steps)
        scores = [mask.scores for mask in self.all_masks]
        return [{"params": scores, "lr": learning_rate, "weight_decay": 0.0, "name": "scores"}]

    def metrics(self) -> dict[str, Tensor | float]:
        return {"score_threshold": self.score_threshold}
