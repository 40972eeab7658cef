"""Narrowing the residual stream: finding its dead dimensions, and norms that ignore them.

A dimension of a post-norm encoder is dead when every norm of the stream outputs 0 there for any input, and ignores its
input there. So norms that narrow compute mean and variance only over dimensions where their weight or bias is not zero
(Xia et al. 2022, arXiv 2204.00408, section 3.1). The compact model has ordinary norms with fewer dimensions.

Legend: `B` batch, `L` tokens, `H` dimensions of the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.layout.groups import Member
from bplightning.layout.instance_mixin import Mixin, mix_in, take_out
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import resize, size_of, stream_width
from bplightning.masks.masking import Cover


class SurvivingNorm(Mixin):
    """Mixed into a LayerNorm that normalizes only over dimensions where its weight or bias is not zero.

    Attributes:
        narrows: Whether it does so already; until then it computes an ordinary LayerNorm.
    """

    innermost = True
    narrows = True
    weight: Tensor
    bias: Tensor | None
    normalized_shape: tuple[int, ...]
    eps: float

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`, ``(B, L, H)``; computed in at least 32 bits, as LayerNorm is under autocast."""
        weight_H, bias_H = self.weight, self.bias
        if not self.narrows:
            return nn.functional.layer_norm(input, self.normalized_shape, weight_H, bias_H, self.eps)
        alive_H = weight_H.detach() != 0
        if bias_H is not None:
            alive_H = alive_H | (bias_H.detach() != 0)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        counted_H = alive_H.to(wide.dtype)
        count = counted_H.sum().clamp(min=1)
        centred = (wide - (wide * counted_H).sum(-1, keepdim=True) / count) * counted_H
        variance = centred.square().sum(-1, keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).to(weight_H.dtype)
        return normed * weight_H if bias_H is None else torch.addcmul(bias_H, normed, weight_H)


def narrowing_covers(layout: PrunableLayout) -> tuple[Cover, ...]:
    """The members that gates of the stream's dimensions multiply: its norms, and what the stream starts from.

    The norms become `SurvivingNorm`, and compute ordinary LayerNorm until `set_narrowing`.

    Args:
        layout: Layout of a model that `require_narrowable` accepts.
    """
    for name in _stream_modules(layout):
        module = layout.model.get_submodule(name)
        if isinstance(module, nn.LayerNorm):
            mix_in(module, SurvivingNorm)
    set_narrowing(layout.model, narrows=False)
    return tuple(Cover(member) for member in _last_passed(layout))


def set_narrowing(model: nn.Module, *, narrows: bool) -> None:
    """Switch the norms of a model that can narrow on or off."""
    for norm in _narrowing(model):
        norm.narrows = narrows


def surviving(layout: PrunableLayout) -> Tensor | None:
    """Indices of the stream's dimensions that are not dead; `None` where its norms do not narrow.

    Args:
        layout: A model whose weights hold zeros, without masks.
    """
    if not any(norm.narrows for norm in _narrowing(layout.model)):
        return None
    weights = [member.weight(layout.model) for member in _last_passed(layout)]
    return torch.stack([(weight_HI != 0).any(1) for weight_HI in weights]).any(0).nonzero().flatten()


@torch.no_grad()
def clear_dimensions(layout: PrunableLayout, kept_H: Tensor) -> None:
    """Write zeros wherever a dimension of the stream that is not kept is written, read or embedded.

    Args:
        layout: Layout of the model, which has no masks.
        kept_H: Which dimensions stay.
    """
    for axis in layout.residual:
        parameter = layout.model.get_parameter(axis.parameter)
        part = parameter if axis.expert is None else parameter[axis.expert]
        part.movedim(axis.axis, -1).mul_(kept_H.to(part))


def ordinary_norms(model: nn.Module) -> None:
    """Turn narrowing norms back into ordinary ones, once their dead dimensions are removed."""
    for norm in _narrowing(model):
        norm.__dict__.pop("narrows", None)
        take_out(norm, SurvivingNorm)


def require_narrowable(layout: PrunableLayout) -> None:
    """Refuse a model whose stream cannot be made narrower, before training: a narrower copy is run on the meta device.

    Args:
        layout: Layout of the model.

    Raises:
        UserError: It has norms other than LayerNorm, or parts that depend on the stream's width in an unknown way.
    """
    model, width = layout.model, stream_width(layout)
    odd = sorted(
        {type(model.get_submodule(name)).__name__ for name in _stream_modules(layout)} - {"LayerNorm", "Linear"}
    )
    reason = f"its norms are {', '.join(odd)} instead of LayerNorm" if odd else None
    if reason is None:
        outputs = []
        for size in (width, width - 1):
            meta = {id(each): nn.Parameter(each.to("meta"), requires_grad=False) for each in model.parameters()}
            there: nn.Module = copy.deepcopy(model, meta).eval().to("meta")
            kept = {group.name: torch.arange(size_of(group)) for group in layout.groups}
            resize(there, layout, kept, stream=torch.arange(size))
            try:
                given = there(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"))
            except (RuntimeError, ValueError) as error:
                reason = f"a narrower copy does not run ({' '.join(str(error).split())[:120]})"
                break
            outputs.append({name: value.shape for name, value in given.items() if isinstance(value, Tensor)})
        if reason is None and outputs[0] != outputs[1]:
            reason = "it outputs the stream itself"
    if reason is not None:
        raise UserError(
            f"the residual stream of this {type(model).__name__} cannot be made narrower: {reason}. Do not prune its "
            "width, or use a model with a head for classification, tagging or question answering."
        )


def narrows_any(model: nn.Module) -> bool:
    """Whether any norm of a model can narrow."""
    return bool(_narrowing(model))


def _last_passed(layout: PrunableLayout) -> Iterator[Member]:
    """Weights and biases outside of sub-layers whose outputs are the stream."""
    inside = {member.module for group in layout.groups for member in group.members}
    for axis in layout.residual:
        module, _, name = axis.parameter.rpartition(".")
        if axis.axis == 0 and module not in inside:
            yield Member(module, name, bias=None)


def _stream_modules(layout: PrunableLayout) -> list[str]:
    return list(dict.fromkeys(member.module for member in _last_passed(layout)))


def _narrowing(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, SurvivingNorm)]
