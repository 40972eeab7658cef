"""L0 regularisation by hard concrete gates (Louizos, Welling, Kingma 2017, arXiv 1712.01312)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bplightning.contracts.scheduled import ScheduledStrategy
from bplightning.contracts.strategy import Progress
from bplightning.contracts.window import PRUNING_WINDOW, PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import check_role_weights, role_weight
from bplightning.strategies.shared.seeded_generator import generator_of

TEMPERATURE = 2 / 3
"""Of the concrete distribution, beta: the lower, the more often a gate is exactly 0 or 1."""

STRETCH = (-0.1, 1.1)
"""What the concrete distribution is stretched to before it is clamped to [0, 1], gamma and zeta."""

FIRST_SCORE = 2.197
"""Where scores start: sigmoid of it is 0.9, and evaluation's gate 0.98."""

SCORE_LEARNING_RATE = 1e-1
"""The movement paper's learning rate of scores."""

SCORE_TRAVEL = 6.0
"""How far scores can travel in a run whose score learning rate follows from its length, in ways to a shut gate."""

SHUT = TEMPERATURE * math.log(-STRETCH[0] / STRETCH[1])
"""A random gate is 0 where logit(u) + score is no greater than this, u the uniform random number."""


class L0(ScheduledStrategy):
    """Random gates that learn to close; for comparison.

    Multiplies tiles by random gates that are often exactly 0, and pays for each gate's chance not to be.

    In training a gate is ``clamp(1.2 sigmoid((logit u + S) / b) - 0.1, 0, 1)``, u uniform and b = 2/3, drawn once for
    each batch that passes through the model, the same on all ranks (arXiv 1712.01312, equations 10 and 11); what is
    drawn follows from the optimizer step and the seed of `seed_everything`. In evaluation it is the same stretch of
    ``sigmoid(S)`` (equation 13), and what is then exactly 0 is pruned. The penalty is ``lambda(t)`` times the mean of
    ``P(gate > 0) = sigmoid(S - b ln(0.1 / 1.1))`` (equation 12), averaged over the masks of a role and then over the
    roles. It is the baseline of arXiv 2005.07683, from which the scores' start and learning rate are. Gates that end
    between 0 and 1 are multiplied into the weights; a gate that several weights share is multiplied into each.

    It departs from that paper's code, which has the whole lambda from the first step (give it as
    `initial_regularization` too) and averages over all matrices, four of a layer's six being attention's (give
    `role_weights` of 4/3 for attention and 2/3).

    Args:
        regularization: Weight lambda of the penalty at the end of the schedule, 0 or more: greater prunes more; the
            density reached follows from it. The paper takes 125 for single elements on SQuAD.
        initial_regularization: Weight of the penalty up to the schedule's beginning, 0 or more.
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), head
            (attention) or unit (feed-forward). Default: element; a decoder's as the encoder's.
        score_learning_rate: Learning rate of the scores, above 0. Default: 1e-1 as in the paper, and more in runs of
            fewer than about 280 optimizer steps, in which scores could not travel far enough.
        window: When the penalty rises. `freeze_masks` must be false: gates follow from scores, which go on learning.
        role_weights: Factor of a role's share of the penalty, by role. Default: 1; a decoder's as the encoder's.
    """

    collapse_remedies: ClassVar[tuple[str, ...]] = (
        "a smaller strategy.role_weights for that role",
        *ScheduledStrategy.collapse_remedies,
    )

    freezes_masks: ClassVar[bool] = False
    penalty_weight: Tensor

    def __init__(
        self,
        regularization: float = 20.0,
        initial_regularization: float = 0.0,
        granularity: dict[str, str] | None = None,
        score_learning_rate: float | None = None,
        window: PruningWindow = PRUNING_WINDOW,
        role_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__(granularity, window)
        weights = {"regularization": regularization, "initial_regularization": initial_regularization}
        for name, value in weights.items():
            if not value >= 0:
                raise UserError(f"{name} is {value:g}; it must be 0 or more. The paper takes 125 for single elements.")
        if score_learning_rate is not None and not score_learning_rate > 0:
            raise UserError(f"score_learning_rate is {score_learning_rate:g}; it must be above 0. The paper takes 0.1.")
        self.regularization = regularization
        self.initial_regularization = initial_regularization
        self.score_learning_rate = score_learning_rate
        self.role_weights = dict(role_weights or {})
        check_role_weights(self.role_weights)
        self.register_buffer("penalty_weight", torch.tensor(initial_regularization, dtype=torch.float32))
        self._step = self._batches = 0

    @torch.no_grad()
    def attach(self, layout: PrunableLayout) -> None:
        super().attach(layout)
        for mask in self.all_masks:
            assert mask.scores is not None
            mask.scores.fill_(FIRST_SCORE)
            mask.gate = hard_concrete
        self._drawing = layout.model.register_forward_pre_hook(self._draw)

    def _draw(self, model: nn.Module, inputs: Any) -> None:
        """New gates for a batch; as with dropout, the model's mode says whether they are random."""
        if not model.training:
            for mask in self.all_masks:
                mask.settle()
            return
        # Ranks must not draw from their own generators: they would train networks of different gates.
        generator = generator_of(step=self._step, batch=self._batches, device=self.penalty_weight.device)
        for mask in self.all_masks:
            mask.draw(generator)
        self._batches += 1

    def advance(self, progress: Progress) -> None:
        super().advance(progress)
        self._step, self._batches = progress.step, 0

    @torch.no_grad()
    def prune(self, amount: float, *, steps_after: int) -> None:
        first, last = self.initial_regularization, self.regularization
        self.penalty_weight.fill_(first + (last - first) * amount)
        for mask in self.all_masks:
            assert mask.scores is not None
            mask.set_grid(hard_concrete(mask.scores, None) > 0)

    def penalty(self) -> Tensor | None:
        means: dict[str, list[Tensor]] = {}
        for mask in self.all_masks:
            assert mask.scores is not None
            means.setdefault(mask.role, []).append(chance_open(mask.scores).mean())
        shares = [role_weight(self.role_weights, role) * torch.stack(values).mean() for role, values in means.items()]
        return self.penalty_weight * torch.stack(shares).mean()

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        learning_rate = self.score_learning_rate
        if learning_rate is None:  # Adam moves a score by at most about its learning rate a step
            way = FIRST_SCORE - math.log(-STRETCH[0] / STRETCH[1])
            learning_rate = max(SCORE_LEARNING_RATE, SCORE_TRAVEL * way / total_steps)
        scores = [mask.scores for mask in self.all_masks]
        return [{"params": scores, "lr": learning_rate, "weight_decay": 0.0, "name": "scores"}]

    def metrics(self) -> dict[str, Tensor | float]:
        return {"penalty_weight": self.penalty_weight}

    def harden(self, layout: PrunableLayout) -> None:
        self._drawing.remove()
        super().harden(layout)


def hard_concrete(scores_RC: Tensor, noise_RC: Tensor | None) -> Tensor:
    """The gates of scores.

    Args:
        scores_RC: The scores.
        noise_RC: Uniform random numbers in [0, 1), or `None` for evaluation's gates.

    Returns:
        ``(R, C)`` in [0, 1], often exactly 0 or 1.

    >>> hard_concrete(torch.tensor([-2.4, -2.3, 0.0, 2.197, 2.5]), None).double().round(decimals=3).tolist()
    [0.0, 0.009, 0.5, 0.98, 1.0]
    """
    low, high = STRETCH
    if noise_RC is None:
        concrete_RC = scores_RC.sigmoid()
    else:
        concrete_RC = ((torch.logit(noise_RC, eps=1e-6) + scores_RC) / TEMPERATURE).sigmoid()
    return (low + (high - low) * concrete_RC).clamp(0, 1)


def chance_open(scores_RC: Tensor) -> Tensor:
    """The chance that a random gate is above 0, ``(R, C)``.

    >>> chance_open(torch.tensor([2.197, -1.5986])).double().round(decimals=3).tolist()
    [0.978, 0.5]
    """
    return (scores_RC - SHUT).sigmoid()
