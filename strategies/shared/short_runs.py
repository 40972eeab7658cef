"""A fixed penalty on scores in a run of few steps, where it would remove everything.

The papers' penalties belong to runs of 50,000 steps and more. There scores fall slowly, and weights have time to answer
a score that falls: as the network shrinks, the loss pulls what is left up again. In a run of a hundred steps scores
must travel the same way in a few steps, and are below the threshold before any weight has answered. So a penalty counts
for less there, and masks fall no faster than the density of movement pruning does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bplightning.masks.masking import Mask
from bplightning.strategies.shared.size_targets import Density
from bplightning.strategies.shared.steering import meeting_cut

SHORT = 500
"""Optimizer steps of a run below which it is short."""

LEAST = 0.05
"""Density that a fixed penalty does not go below in a short run."""


def penalty_that_counts(total_steps: int) -> float:
    """The part of a fixed penalty that counts, in (0, 1].

    Args:
        total_steps: Optimizer steps of the run.

    >>> penalty_that_counts(125), penalty_that_counts(500), penalty_that_counts(110_640)
    (0.25, 1.0, 1.0)
    """
    return min(1.0, total_steps / SHORT)


@torch.no_grad()
def highest_cut(masks: Sequence[Mask], scores: Sequence[Tensor], span: Tensor, *, amount: float) -> Tensor:
    """The highest cut on scores that a short run may make, a 0-d tensor.

    Args:
        masks: The masks.
        scores: The scores ``(R, C)`` of each; infinite for what stays in any case.
        span: The greatest distance of a score from 0, a 0-d tensor.
        amount: Point of the schedule, from 0 to 1, on the cubic way.
    """
    density = 1 + (LEAST - 1) * amount
    return meeting_cut(left=Density(density).left(masks, scores), share=density, span=span)
