"""How large the network is that gates leave: expected, of this moment, and made what it is meant to be.

Legend: `N` gates of one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from bplightning.masks.masking import Mask
from bplightning.strategies.cofi.gates import Gate, Part, Sublayers, kept_in_evaluation, left, sublayers_open
from bplightning.strategies.l0 import chance_open

FARTHEST, HALVINGS = 32.0, 40
"""Interval in which the shift is looked for that lands on a size, and how often it is halved."""


class GatedSize:
    """Size of a network as a fraction of its linear weights.

    Args:
        masks: Those of heads and units; each has a `Gate` with sub-layers.
        stream: That of the residual stream's dimensions; `None` where these have no gates.
    """

    def __init__(self, masks: Sequence[Mask], stream: Mask | None) -> None:
        self.masks = masks
        self.stream = stream

    def expected(self) -> Tensor:
        """What random gates are expected to leave, a 0-d tensor; gradients reach the scores."""
        opens = {id(of): chance_open(of.scores) for of in map(_sublayers, self.masks)}
        parts = [
            Part(mask.total_weights, opens[id(_sublayers(mask))][_gate(mask).index], chance_open(_scores(mask)))
            for mask in self.masks
        ]
        return left(parts, dimensions=None if self.stream is None else chance_open(_scores(self.stream)))

    @torch.no_grad()
    def kept(self, role: str | None = None) -> Tensor:
        """What masks keep at this moment, of all weights or of a role's, a 0-d tensor."""
        masks = [mask for mask in self.masks if role is None or mask.role == role]
        one = torch.ones((), device=masks[0].kept.device)
        parts = [Part(mask.total_weights, one, mask.kept.float()) for mask in masks]
        return left(parts, dimensions=None if self.stream is None else self.stream.kept.float())

    @torch.no_grad()
    def set_kept(self, shift: float | Tensor = 0.0, *, of_sublayers: float | Tensor = 0.0) -> None:
        """Let masks keep what evaluation's gates let through.

        Args:
            shift: Added to the scores of heads, units and dimensions first.
            of_sublayers: Added to those of sub-layers.
        """
        opens = {id(of): sublayers_open(of.scores + of_sublayers) for of in map(_sublayers, self.masks)}
        for mask in self.masks:
            mask.set_grid(kept_in_evaluation(_scores(mask) + shift) & opens[id(_sublayers(mask))][_gate(mask).index])
        if self.stream is not None:
            self.stream.set_grid(kept_in_evaluation(_scores(self.stream) + shift))

    def land(self, density: float) -> tuple[Tensor, Tensor]:
        """Let masks keep so much, or a little less.

        Sub-layers are too large to land by, and are shifted only where what is in them would not be enough.

        Args:
            density: What is to be kept.

        Returns:
            What scores were shifted by for it: of heads, units and dimensions, and of sub-layers, 0-d tensors.
        """
        zero = torch.zeros((), device=self.masks[0].kept.device)

        def not_enough(of_sublayers: Tensor) -> Tensor:
            self.set_kept(FARTHEST, of_sublayers=of_sublayers)
            return self.kept() < density

        _, opening = _boundary(not_enough, zero, zero + FARTHEST)
        of_sublayers = torch.where(not_enough(zero), opening, zero)

        def within(shift: Tensor) -> Tensor:
            self.set_kept(shift, of_sublayers=of_sublayers)
            return self.kept() <= density

        shift, _ = _boundary(within, zero - FARTHEST, zero + FARTHEST)
        self.set_kept(shift, of_sublayers=of_sublayers)
        return shift, of_sublayers


def _boundary(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers next to each other, up to the first of which something holds, and from the second on not any more."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = holds(middle)
        low, high = torch.where(found, middle, low), torch.where(found, high, middle)
    return low, high


def _gate(mask: Mask) -> Gate:
    return cast(Gate, mask.gate)


def _sublayers(mask: Mask) -> Sublayers:
    return cast(Sublayers, _gate(mask).sublayers)


def _scores(mask: Mask) -> Tensor:
    return cast(Tensor, mask.scores)
