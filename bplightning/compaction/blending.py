"""Blends of a layer and the simpler one that replaces it: the share of the simpler one rises from 0 to 1."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from bplightning.compaction.no_norm import affine
from bplightning.layout.instance_mixin import Mixin


class Blend(Protocol):
    """Controls the blended layers of a model.

    Attributes:
        amount: Share of the simpler layer in the output, from 0 to 1.
    """

    amount: float

    def measure(self, index: int, input_BLH: Tensor, mean_BL1: Tensor, inverse_BL1: Tensor) -> None:
        """Record the input, mean and inverse deviation of the norm with this index in a training step."""

    def folded(self, norm: nn.LayerNorm, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the NoNorm that replaces the norm with this index."""


class BlendedNorm(Mixin):
    """Mixed into a LayerNorm that becomes a NoNorm step by step.

    Attributes:
        simplifier: What controls the blend, and the index of this norm in it.
    """

    innermost = True
    simplifier: tuple[Blend, int]
    weight: Tensor
    bias: Tensor | None
    normalized_shape: tuple[int, ...]
    eps: float
    training: bool

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`, ``(B, L, H)``."""
        simplifier, index = self.simplifier
        norm = cast(nn.LayerNorm, self)
        if simplifier.amount == 1:
            return affine(input, *simplifier.folded(norm, index))
        # As `layer_norm`, which does not return the mean and deviation.
        shape, weight, bias = list(self.normalized_shape), self.weight, self.bias
        normed, mean_BL1, inverse_BL1 = torch.native_layer_norm(input, shape, weight, bias, self.eps)
        if self.training:
            simplifier.measure(index, input, mean_BL1, inverse_BL1)
        if simplifier.amount == 0:
            return normed
        return normed.lerp(affine(input, *simplifier.folded(norm, index)).to(normed.dtype), simplifier.amount)


class BlendedActivation(nn.Module):
    """An activation that becomes ReLU step by step.

    Args:
        before: The original activation.
        simplifier: What controls the blend.
    """

    simplifier: Blend

    def __init__(self, before: nn.Module, simplifier: Blend) -> None:
        super().__init__()
        self.before = before
        self.__dict__["simplifier"] = simplifier  # not as an attribute, which would register it as a sub-module

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`."""
        amount = self.simplifier.amount
        if amount == 0:
            return self.before(input)
        simple = input.relu()
        return simple if amount == 1 else self.before(input).lerp(simple, amount)


def is_blended(model: nn.Module) -> bool:
    """Whether any layer of `model` is still a blend."""
    return any(isinstance(module, BlendedNorm | BlendedActivation) for module in model.modules())
