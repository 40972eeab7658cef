"""Steering a penalty so that pruning ends at a target, in place of a guessed regularization.

Scores are cut where sigmoid(score) is a threshold. At any step there is one cut that would meet the target with the
scores of that step; steering makes that cut arrive at the threshold when the schedule ends, by raising the penalty's
weight when it comes too slowly and lowering it when it comes too fast. The weight is the multiplier of the constraint
"the cut is where it should be": its logarithm ascends by the violation (dual ascent), and the violation itself is added
(the quadratic term of an augmented Lagrangian; Hestenes 1969; for pruning Wang et al. 2020, arXiv 1910.04732, and Xia
et al. 2022, arXiv 2204.00408, who constrain the expected size instead).

A penalty cannot pull scores up again, so what it pushed too far stays there. What is then left between the two is
closed from the other side: in the last part of the schedule the cut that is made goes over, little by little, from the
threshold to the cut that meets the target, as where the top scores are kept (movement pruning, arXiv 2005.07683).

Nor may it push too much below the threshold at once, which in a short run is a matter of a few steps: at no moment is
less left than on the cubic way from everything to the target, the density of movement pruning at that moment. So the
target is the least that is ever left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bplightning.contracts.schedule import cubic

ARRIVAL = 0.8
"""Part of the schedule after which the cut is to be at the threshold; what error is left then dies away."""

STIFFNESS = 6.0
"""Change of the weight's logarithm when the cut is off by the whole way."""

MEMORY = 0.15
"""Part of the schedule over which a lasting violation changes the logarithm by as much again."""

RANGE = math.log(1e4)
"""How far the weight may go from where it starts, as a logarithm."""

CLOSING = 0.8, 0.95
"""Parts of the schedule at which the cut that is made begins to leave the threshold, and is the one that is met."""

LOOKS = 200
"""How often the cut is looked for in a schedule that has at least so many steps: far more often than it turns."""

HALVINGS, ALL_HALVINGS = 24, 64
"""Of the interval in which the cut is looked for: on the way, to a millionth of it; at the end, to the last bit."""

TOO_FEW = 0.5
"""Part of what is to be left: where a cut leaves less, because many scores are alike, the one before it is taken."""


class Steering(nn.Module):
    """The weight of a penalty on scores, steered.

    Args:
        target: What `look` is to show at the end, in (0, 1).
        look: Gives, from the scores of this moment, a function from a cut on scores, a 0-d tensor, to what would be
            left with it, a 0-d tensor too; that falls with the cut.
        span: Gives the greatest distance of a score from 0 at this moment, a 0-d tensor.
        final_cut: Where the cut must be at the end of the schedule, below 0.
        weight: The weight at the beginning.
    """

    step: Tensor
    violation: Tensor
    lasting: Tensor
    cut: Tensor
    highest: Tensor
    first_cut: Tensor

    def __init__(
        self,
        target: float,
        look: Callable[[], Callable[[Tensor], Tensor]],
        span: Callable[[], Tensor],
        *,
        final_cut: float,
        weight: float,
    ) -> None:
        super().__init__()
        self.target = target
        self.look = look
        self.span = span
        self.final_cut = final_cut
        self.first_weight = weight
        self.part = 0.0  # of the schedule; each call of `advance` says it anew
        self.register_buffer("step", torch.tensor(-1))
        self.register_buffer("violation", torch.tensor(0.0))
        self.register_buffer("lasting", torch.tensor(0.0))
        self.register_buffer("cut", torch.tensor(0.0))
        self.register_buffer("highest", torch.tensor(math.inf))
        self.register_buffer("first_cut", torch.tensor(0.0))

    @torch.no_grad()
    def advance(self, *, step: int, start: int, end: int) -> None:
        """Look where the cut is, in every so many steps; called again with the same step it changes nothing.

        Args:
            step: Optimizer steps taken.
            start: First step of the schedule; before it there is nothing to look for.
            end: Its last step, of which the cut is exact.
        """
        self.part = (step - start) / (end - start)
        stride = max(1, (end - start) // LOOKS)
        if step < start or ((step - start) % stride and step != end):
            return
        left, span, halvings = self.look(), self.span(), ALL_HALVINGS if step == end else HALVINGS
        self.cut.copy_(meeting_cut(left=left, share=self.target, span=span, halvings=halvings))
        least = cubic(step=step, start=start, end=end, initial=1.0, final=self.target)
        self.highest.copy_(meeting_cut(left=left, share=least, span=span, halvings=halvings))
        if step == start:  # scores move before there is a penalty; the way begins where they are then
            self.first_cut.copy_(self.cut)
        way = min(self.part / ARRIVAL, 1.0)
        wanted = self.first_cut + (self.final_cut - self.first_cut) * way
        violation = (self.cut - wanted) / abs(self.final_cut)
        new = (self.step < step).to(violation.dtype)
        self.violation.copy_(violation)
        self.lasting.add_(new * violation * stride / (MEMORY * (end - start)))
        self.lasting.clamp_(-RANGE / STIFFNESS, RANGE / STIFFNESS)
        self.step.fill_(step)

    def weight(self) -> Tensor:
        """The penalty's weight of this moment, a 0-d tensor."""
        logarithm = STIFFNESS * (self.violation + self.lasting)
        return self.first_weight * logarithm.clamp(-RANGE, RANGE).exp()

    def cut_to_make(self, scheduled: float) -> Tensor:
        """Where to cut at this moment, a 0-d tensor.

        Args:
            scheduled: Where the schedule has the cut.
        """
        begin, end = CLOSING
        over = min(max((self.part - begin) / (end - begin), 0.0), 1.0)
        cut = torch.full_like(self.cut, scheduled)
        return (cut if over == 0 else torch.lerp(cut, self.cut, over)).minimum(self.highest)


def meeting_cut(
    *, left: Callable[[Tensor], Tensor], share: float, span: Tensor, halvings: int = ALL_HALVINGS
) -> Tensor:
    """The cut that leaves a share, found by halving an interval, on the device.

    Args:
        left: From a cut to what is left with it, both 0-d tensors; it falls with the cut.
        share: What is to be left; it may be a part less where scores are alike, but not less than half of it.
        span: The greatest distance of a score from 0, a 0-d tensor.
        halvings: How often the interval is halved.

    >>> scores = torch.tensor([-30.0, -1.0, 0.0, 2.0])
    >>> cut = meeting_cut(left=lambda cut: (scores > cut).float().mean(), share=0.5, span=scores.abs().amax())
    >>> (scores > cut).tolist()
    [False, False, True, True]
    """
    low, high = -span - 1, span + 1
    for _ in range(halvings):
        middle = (low + high) / 2
        too_much = left(middle) > share
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return torch.where(left(high) < TOO_FEW * share, low, high)
