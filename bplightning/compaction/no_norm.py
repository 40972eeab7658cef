"""NoNorm, which replaces LayerNorm in a simplified network (Sun et al. 2020, arXiv 2004.02984).

Legend: `B` batch, `L` tokens, `H` hidden size.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.compaction.narrow_stream import narrows_any
from bplightning.errors import UserError
from bplightning.layout.instance_mixin import Mixin, mix_in
from bplightning.layout.prunable_layout import PrunableLayout


class NoNorm(Mixin):
    """Mixed into a LayerNorm that computes ``weight * x + bias``, without mean and variance of `x`.

    It stays an instance of LayerNorm, so that optimizers treat its parameters as those of one (no weight decay).
    """

    innermost = True
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`, ``(B, L, H)``."""
        return affine(input, self.weight, self.bias)


def has_no_norm(model: nn.Module) -> bool:
    """Whether any norm of `model` is a NoNorm."""
    return any(isinstance(module, NoNorm) for module in model.modules())


def use_no_norm(layout: PrunableLayout) -> None:
    """Turn the norms of a model's layers into NoNorm, before its weights are loaded."""
    for norm in _norms(layout):
        mix_in(norm, NoNorm)


def affine(input_BLH: Tensor, weight_H: Tensor, bias_H: Tensor | None) -> Tensor:
    """``weight * x + bias`` in one pass over memory."""
    return input_BLH * weight_H if bias_H is None else torch.addcmul(bias_H, input_BLH, weight_H)


def norms_of(layout: PrunableLayout) -> list[nn.LayerNorm]:
    """The norms to simplify; none where all are simplified already.

    Raises:
        UserError: The layers have other norms than LayerNorm, or norms that can narrow.
    """
    norms = _norms(layout)
    if narrows_any(layout.model):
        raise UserError(
            "simplification.no_norm is true, but the strategy narrows the model's norms, which NoNorm cannot: "
            "leave no_norm out, or set the strategy to keep the width of the stream, where it has such a setting."
        )
    if not norms and not has_no_norm(layout.model):
        config: Any = layout.model.config
        names = {type(module).__name__ for module in _modules_of_layers(layout)}
        there = ", ".join(sorted(name for name in names if "norm" in name.lower())) or "none"
        raise UserError(
            f"simplification.no_norm is true, but the layers of this {config.model_type!r} model have no LayerNorm to "
            f"simplify (their norms: {there}): leave it out, or use a model with LayerNorm, such as BERT or BART."
        )
    return norms


def _norms(layout: PrunableLayout) -> list[nn.LayerNorm]:
    """The LayerNorms of the layers, each once."""
    return [module for module in _modules_of_layers(layout) if type(module) is nn.LayerNorm]


def _modules_of_layers(layout: PrunableLayout) -> list[nn.Module]:
    # A layer's name is the module's name up to its first number.
    found = (re.match(r".*?\.\d+\.", group.members[-1].module) for group in layout.groups)
    layers = tuple({match.group() for match in found if match is not None})
    return [module for name, module in layout.model.named_modules() if name.startswith(layers)]
