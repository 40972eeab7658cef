"""Layers between what they were and what simplification makes of them: a share of each, until the share is 1."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bplightning.compaction.no_norm import affine


class Blend(Protocol):
    """What says how far the layers of a model are blended."""

    amount: float

    def measure(self, index: int, input_BLH: Tensor, mean_BL1: Tensor, inverse_BL1: Tensor) -> None:
        """Take note of what the norm of this index met in training."""

    def folded(self, norm: nn.LayerNorm, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the NoNorm that the norm of this index becomes."""


class BlendedNorm(nn.LayerNorm):
    """A LayerNorm on its way to NoNorm: its instance's `simplifier` says how far."""

    simplifier: tuple[Blend, int]

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`, ``(B, L, H)``."""
        simplifier, index = self.simplifier
        if simplifier.amount == 1:
            return affine(input, *simplifier.folded(self, index))
        # What `layer_norm` does, but for that it also says what it measured.
        shape, weight, bias = list(self.normalized_shape), self.weight, self.bias
        normed, mean_BL1, inverse_BL1 = torch.native_layer_norm(input, shape, weight, bias, self.eps)
        if self.training:
            simplifier.measure(index, input, mean_BL1, inverse_BL1)
        if simplifier.amount == 0:
            return normed
        return normed.lerp(affine(input, *simplifier.folded(self, index)).to(normed.dtype), simplifier.amount)


class BlendedActivation(nn.Module):
    """An activation on its way to ReLU.

    Args:
        before: The activation that there was.
        simplifier: Says how far it is.
    """

    simplifier: Blend

    def __init__(self, before: nn.Module, simplifier: Blend) -> None:
        super().__init__()
        self.before = before
        self.__dict__["simplifier"] = simplifier  # no attribute, which would make it a part of this

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`."""
        amount = self.simplifier.amount
        if amount == 0:
            return self.before(input)
        simple = input.relu()
        return simple if amount == 1 else self.before(input).lerp(simple, amount)


def is_blended(model: nn.Module) -> bool:
    """Whether `model` computes something between what it did and what is simple."""
    return any(isinstance(module, BlendedNorm | BlendedActivation) for module in model.modules())
