"""The gates of CoFi: how large a network they are expected to leave, what they are in evaluation, and where they lie.

Legend: `N` gates of one vector: the heads or units of a sub-layer, the sub-layers of a kind, dimensions of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bplightning.masks.masking import Mask
from bplightning.strategies.l0 import TEMPERATURE, chance_open, hard_concrete

SOFTNESS = 0.8
"""Of evaluation's gates that are not 0: the published code's factor of score / temperature."""

FIRST_SCORE = 10.0
"""Where scores start: one gate in a hundred thousand is 0, one in 4,500 is less than 1."""


class Part(NamedTuple):
    """What decides how much of a sub-layer is left.

    Attributes:
        weights: Linear weights of the whole sub-layer.
        open: The chance that the sub-layer's gate is above 0, or whether it is, a 0-d tensor.
        entries: The same of each of its heads or units, ``(N,)``.
    """

    weights: int
    open: Tensor
    entries: Tensor


def left(parts: Sequence[Part], *, dimensions: Tensor | None) -> Tensor:
    """The fraction of linear weights that gates leave, or are expected to leave, a 0-d tensor.

    A weight stays where its dimension of the stream, its sub-layer, and its head or unit do; gates are independent, so
    the expectation of the product is the product of the chances (arXiv 2204.00408, section 3.1).

    Args:
        parts: The sub-layers.
        dimensions: Chances of the stream's dimensions ``(N,)``, or which are left; `None` where none is gated.

    >>> half, whole = torch.tensor(0.5), torch.tensor(1.0)
    >>> float(left([Part(300, whole, torch.tensor([1.0, 0.0])), Part(100, half, torch.ones(4))], dimensions=None))
    0.5
    """
    kept = torch.stack([part.weights * part.open * part.entries.mean() for part in parts]).sum()
    share = kept / sum(part.weights for part in parts)
    return share if dimensions is None else share * dimensions.mean()


def kept_in_evaluation(scores: Tensor) -> Tensor:
    """Which gates of a vector stay open in evaluation: as many as are expected to be, those of the highest scores.

    Args:
        scores: The vector, of `N` elements in any shape.

    Returns:
        Booleans of its shape.

    >>> kept_in_evaluation(torch.tensor([3.0, -1.7, -9.0, 3.0])).tolist()
    [True, False, False, True]
    """
    flat = scores.detach().flatten()
    shut = (len(flat) - chance_open(flat).sum()).round()
    rank = flat.argsort(stable=True).argsort()
    return (rank >= shut).view(scores.shape)


def sublayers_open(scores: Tensor) -> Tensor:
    """Which sub-layers of a kind stay open in evaluation: as many as are expected to be, as of heads and units.

    The published code decides each alone, by whether its chance is above one half. Of four whose chance is 0.6 it keeps
    four; 2.4 are expected, and here two stay. ``benchmarks/quality/cofi_gates.py`` compares both.

    Args:
        scores: Scores of the sub-layers' gates ``(N,)``.

    Returns:
        Booleans ``(N,)``.

    >>> sublayers_open(torch.full((4,), -1.1932)).sum().item()  # a chance of 0.6 each
    2
    """
    return kept_in_evaluation(scores)


def evaluation_gates(scores: Tensor) -> Tensor:
    """What gates that stay open multiply by in evaluation, of the scores' shape, below 1."""
    return (SOFTNESS * scores / TEMPERATURE).sigmoid()


class Sublayers(nn.Module):
    """A gate for each sub-layer of one kind.

    Args:
        count: How many there are.

    Attributes:
        scores: ``(N,)``.
        noise: The random numbers of the batch that is trained on.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full((count,), FIRST_SCORE))
        self.noise: Tensor | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Gates are random for a batch, as in `Mask.draw`."""
        shape, dtype, device = self.scores.shape, self.scores.dtype, self.scores.device
        self.noise = torch.rand(shape, generator=generator, dtype=dtype, device=device)


@dataclass
class Phase:
    """Where a run stands, known to the host.

    Attributes:
        begun: Whether gates may be anything but 1.
        landed: Whether they have come to rest.
    """

    begun: bool = False
    landed: bool = False

    @property
    def random(self) -> bool:
        """Whether training's gates are drawn."""
        return self.begun and not self.landed


@dataclass(eq=False, repr=False)
class Gate:
    """What a mask multiplies by: its own gates, and that of the sub-layer it is in.

    Attributes:
        mask: The mask; its grid says which entries stay open in evaluation, the sub-layer's gate counted in.
        phase: Where the run stands.
        sublayers: The gates of the sub-layers of this kind; `None` outside of a sub-layer.
        index: Which of them.
    """

    mask: Mask
    phase: Phase
    sublayers: Sublayers | None = None
    index: int = 0

    def __call__(self, scores: Tensor, noise: Tensor | None) -> Tensor:
        """The gates, of the scores' shape; random with `noise`, else those of evaluation."""
        if not self.phase.begun:
            return torch.ones_like(scores)
        outer = None if self.sublayers is None else self.sublayers.scores[self.index]
        if noise is None:
            gates = evaluation_gates(scores)
            return self.mask.kept * (gates if outer is None else gates * evaluation_gates(outer))
        gates = hard_concrete(scores, noise)
        if self.sublayers is None:
            return gates
        assert self.sublayers.noise is not None
        return gates * hard_concrete(self.sublayers.scores, self.sublayers.noise)[self.index]
