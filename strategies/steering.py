"""Steering a penalty so that pruning ends at a target, in place of a guessed regularization.

Scores are cut where sigmoid(score) is a threshold. At any step there is one cut that would meet the target with the
scores of that step; steering makes that cut arrive at the threshold when the schedule ends, by raising the penalty's
weight when it comes too slowly and lowering it when it comes too fast. The weight is the multiplier of the constraint
"the cut is where it should be": its logarithm ascends by the violation (dual ascent), and the violation itself is added
(the quadratic term of an augmented Lagrangian; Hestenes 1969; for pruning Wang et al. 2020, arXiv 1910.04732, and Xia
et al. 2022, arXiv 2204.00408, who constrain the expected size instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

ARRIVAL = 0.8
"""Part of the schedule after which the cut is to be at the threshold; what error is left then dies away."""

STIFFNESS = 6.0
"""Change of the weight's logarithm when the cut is off by the whole way."""

MEMORY = 0.15
"""Part of the schedule over which a lasting violation changes the logarithm by as much again."""

RANGE = math.log(1e4)
"""How far the weight may go from where it starts, as a logarithm."""

FARTHEST = 16.0
"""Scores beyond this are cut or kept in any case."""


class Steering(nn.Module):
    """The weight of a penalty on scores, steered.

    Args:
        target: What `fraction` is to be at the end, in (0, 1).
        fraction: From a cut on scores, a 0-d tensor, to what would be left with it, a 0-d tensor too; falls with the
            cut.
        final_cut: Where the cut must be at the end of the schedule, below 0.
        weight: The weight at the beginning.
    """

    step: Tensor
    violation: Tensor
    lasting: Tensor
    cut: Tensor
    first_cut: Tensor

    def __init__(self, target: float, fraction: Callable[[Tensor], Tensor], *, final_cut: float, weight: float) -> None:
        super().__init__()
        self.target = target
        self.fraction = fraction
        self.final_cut = final_cut
        self.first_weight = weight
        self.register_buffer("step", torch.tensor(-1))
        self.register_buffer("violation", torch.tensor(0.0))
        self.register_buffer("lasting", torch.tensor(0.0))
        self.register_buffer("cut", torch.tensor(0.0))
        self.register_buffer("first_cut", torch.tensor(0.0))

    @torch.no_grad()
    def advance(self, *, step: int, start: int, end: int) -> None:
        """Look where the cut is; called again with the same step it changes nothing.

        Args:
            step: Optimizer steps taken.
            start: First step of the schedule.
            end: Its last step.
        """
        self.cut.copy_(self.meeting_cut())
        if step <= start:  # scores move before there is a penalty; the way begins where they are then
            self.first_cut.copy_(self.cut)
        way = min(max((step - start) / (ARRIVAL * (end - start)), 0.0), 1.0)
        wanted = self.first_cut + (self.final_cut - self.first_cut) * way
        violation = (self.cut - wanted) / abs(self.final_cut)
        new = (self.step < step).to(violation.dtype)
        self.violation.copy_(violation)
        self.lasting.add_(new * violation / (MEMORY * (end - start))).clamp_(-RANGE / STIFFNESS, RANGE / STIFFNESS)
        self.step.fill_(step)

    def weight(self) -> Tensor:
        """The penalty's weight of this moment, a 0-d tensor."""
        logarithm = STIFFNESS * (self.violation + self.lasting)
        return self.first_weight * logarithm.clamp(-RANGE, RANGE).exp()

    def meeting_cut(self) -> Tensor:
        """The cut that would meet the target now, found by halving an interval, on the device."""
        low, high = (torch.full_like(self.cut, side * FARTHEST) for side in (-1, 1))
        for _ in range(30):
            middle = (low + high) / 2
            too_much = self.fraction(middle) > self.target
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        return high
