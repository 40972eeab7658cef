"""What a network is to be pruned to: a density, or a share of its floating-point operations.

Both ask what is left above a cut on scores. Of a network there are parts that go one by one, each where the cut reaches
its score: single tiles for the density; for the operations whole heads and units, each with the score of the tile that
keeps it alive the longest. So a look at the scores, once, gives what is left for every cut.

Legend: `R`, `C` grid rows and columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bplightning.compaction.example_inputs import random_inputs
from bplightning.compaction.survival import Survival
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import size_of
from bplightning.masks.masking import Mask
from bplightning.measuring.measure import FLOPS_SHAPE, fitting, flops_by_module
from bplightning.planning.estimate import flops_of_group


@dataclass(frozen=True)
class Left:
    """What is left of a network with a cut on scores.

    Attributes:
        always: Share that no cut takes away.
        parts: Scores ``(N,)`` of parts that go one by one, and the share of each.

    >>> left = Left(0.5, ((torch.tensor([-1.0, 0.0, 1.0, 2.0]), 0.125),))
    >>> [float(left(torch.tensor(cut))) for cut in (-2.0, 0.0, 3.0)]
    [1.0, 0.75, 0.5]
    """

    always: float
    parts: tuple[tuple[Tensor, float], ...]

    def __call__(self, cut: Tensor) -> Tensor:
        """The share above a cut, a 0-d tensor."""
        left = torch.full_like(cut, self.always)
        for scores, share in self.parts:
            left = left + (scores > cut).count_nonzero() * share
        return left


class SizeTarget(ABC):
    """What a network is to be pruned to; where that asks for more than its masks, `attach` finds out.

    Attributes:
        kind: What is wanted, as reports call it.
        value: How much of it.
        share: What is to be left, of what the dense network has, in (0, 1).
    """

    kind: ClassVar[str]
    value: float
    share: float

    def attach(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:  # noqa: B027  a hook
        """Learn what the parts of a network count for.

        Args:
            layout: What can be pruned of it.
            masks: Its masks.
        """

    @property
    def known(self) -> bool:
        """Whether `left` can say what is left already; if not, it can after `prepare`."""
        return True

    def prepare(self, dense: Callable[[], nn.Module]) -> None:  # noqa: B027  a hook
        """Find out what takes too long to be found where nothing is trained; called when training begins.

        Args:
            dense: Gives a copy of the model without masks, on the device that it trains on.
        """

    @abstractmethod
    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        """What is left with any cut.

        Args:
            masks: The masks of the network.
            scores: The scores ``(R, C)`` of each; infinite for what stays in any case.

        Returns:
            From a cut to the share above it, both 0-d tensors, without waiting for the device.
        """

    @property
    def shape(self) -> str | None:
        """Rows and tokens, ``"BxL"``, that a speed-up in time is meant for; `None` for what is counted."""
        return None

    @abstractmethod
    def value_of(self, share: float) -> float:
        """What a share is in the target's own terms."""

    def require_reachable(self, smallest: float, *, guided: bool) -> None:
        """Refuse a target below what no cut takes away.

        Args:
            smallest: The share left where everything is cut.
            guided: Whether a guide's heads are among it.

        Raises:
            UserError: The target is out of reach.
        """
        if smallest >= self.share:
            kept = " and the guide's heads" if guided else ""
            raise UserError(
                f"target.{self.kind} is {self.value:g}, which cannot be reached: with everything removed but what "
                f"cannot be pruned{kept}, it is {self.value_of(smallest):.4g}. Ask for less pruning than that"
                f"{', or take another guide' if guided else ''}."
            )


class Density(SizeTarget):
    """A fraction of the prunable weights.

    Args:
        density: The fraction kept, in (0, 1).
    """

    kind: ClassVar[str] = "density"

    def __init__(self, density: float) -> None:
        self.value = self.share = density

    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Left:
        total = sum(mask.total_weights for mask in masks)
        alike: dict[int, list[Tensor]] = {}
        for mask, scores_RC in zip(masks, scores, strict=True):
            alike.setdefault(mask.weights_per_entry, []).append(scores_RC.flatten())
        return Left(0.0, tuple((torch.cat(values), weights / total) for weights, values in alike.items()))

    def value_of(self, share: float) -> float:
        return share


class FlopsShare(SizeTarget):
    """Floating-point operations of the compact model over those of the dense one.

    A head, or a unit, costs the same whichever goes; see `bplightning.compaction.survival` for when it goes.

    Args:
        share: The share kept, in (0, 1).
    """

    kind: ClassVar[str] = "flops"

    def __init__(self, share: float) -> None:
        self.value = self.share = share
        self.survival: Survival | None = None
        self.shares: dict[str, float] = {}  # of one head or unit, by group
        self.always = 1.0

    def attach(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:
        counts = flops_by_module(layout.model, example_inputs(layout.model))
        self.survival = Survival(layout, masks)
        for group in self.survival.groups:
            share = flops_of_group(counts, group) / counts[""]
            self.shares[group.name] = share / size_of(group)
            self.always -= share

    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Left:
        assert self.survival is not None
        alike: dict[float, list[Tensor]] = {}
        for group in self.survival.groups:
            alike.setdefault(self.shares[group.name], []).append(self.survival.of(group, scores))
        return Left(self.always, tuple((torch.cat(lives), share) for share, lives in alike.items()))

    def value_of(self, share: float) -> float:
        return share


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Random inputs at `FLOPS_SHAPE`; a decoder reads as many tokens as its encoder."""
    ((rows, tokens),) = fitting(model, [FLOPS_SHAPE])
    return random_inputs(model, rows, tokens)
