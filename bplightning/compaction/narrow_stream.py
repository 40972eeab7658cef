"""The residual stream made narrower: what of its dimensions is dead, and norms that look at the others only.

A dimension of a post-norm encoder is dead when every norm that the stream passes gives 0 there, whatever goes in, and
takes no account of what goes in: so norms that narrow count only the dimensions of which their weight and bias leave
anything (Xia et al. 2022, arXiv 2204.00408, section 3.1). The compact model has ordinary norms, of fewer dimensions.

Legend: `B` batch, `L` tokens, `H` dimensions of the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.layout.groups import Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import resize, size_of, stream_width
from bplightning.masks.masking import Cover


class SurvivingNorm(nn.LayerNorm):
    """A LayerNorm of those dimensions of which its weight and bias leave anything; the others are 0.

    Attributes:
        narrows: Whether it is that already; before, it is an ordinary one.
    """

    narrows = True

    def forward(self, input: Tensor) -> Tensor:
        """The same shape as `input`, ``(B, L, H)``; in 32 bits at least, as an ordinary one under autocast."""
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
    """What gates of the stream's dimensions multiply: all that it passes last, a norm or what it starts from.

    Its norms become `SurvivingNorm`, which are ordinary ones until `set_narrowing`.

    Args:
        layout: A model that `require_narrowable` has nothing against.
    """
    for name in _stream_modules(layout):
        module = layout.model.get_submodule(name)
        if isinstance(module, nn.LayerNorm):
            module.__class__ = SurvivingNorm
    set_narrowing(layout.model, narrows=False)
    return tuple(Cover(member) for member in _last_passed(layout))


def set_narrowing(model: nn.Module, *, narrows: bool) -> None:
    """Whether norms that can narrow do."""
    for norm in _narrowing(model):
        norm.narrows = narrows


def surviving(layout: PrunableLayout) -> Tensor | None:
    """Indices of the stream's dimensions that live; `None` where its norms are not made to narrow.

    Args:
        layout: A model whose weights hold zeros, without masks.
    """
    if not any(norm.narrows for norm in _narrowing(layout.model)):
        return None
    weights = [member.weight(layout.model) for member in _last_passed(layout)]
    return torch.stack([(weight_HI != 0).any(1) for weight_HI in weights]).any(0).nonzero().flatten()


@torch.no_grad()
def clear_dimensions(layout: PrunableLayout, kept_H: Tensor) -> None:
    """Write zeros wherever the stream's dimensions that are not kept are written, read or embedded.

    Args:
        layout: The model's, without masks.
        kept_H: Which dimensions stay.
    """
    for axis in layout.residual:
        parameter = layout.model.get_parameter(axis.parameter)
        part = parameter if axis.expert is None else parameter[axis.expert]
        part.movedim(axis.axis, -1).mul_(kept_H.to(part))


def ordinary_norms(model: nn.Module) -> None:
    """Make norms that narrow ordinary ones, once only what lives is left of them."""
    for norm in _narrowing(model):
        norm.__dict__.pop("narrows", None)
        norm.__class__ = nn.LayerNorm  # type: ignore[assignment]


def require_narrowable(layout: PrunableLayout) -> None:
    """Refuse a model whose stream cannot be made narrower, before hours are spent: a narrower one, of no numbers, runs.

    Args:
        layout: The model's.

    Raises:
        UserError: Its norms are others than LayerNorm, or more hangs on the stream's width than is known.
    """
    model, width = layout.model, stream_width(layout)
    odd = sorted(
        {type(model.get_submodule(name)).__name__ for name in _stream_modules(layout)} - {"LayerNorm", "Linear"}
    )
    reason = f"its stream passes {', '.join(odd)}, and not LayerNorm" if odd else None
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
                reason = f"a narrower one does not run ({' '.join(str(error).split())[:120]})"
                break
            outputs.append({name: value.shape for name, value in given.items() if isinstance(value, Tensor)})
        if reason is None and outputs[0] != outputs[1]:
            reason = "it gives out the stream itself"
    if reason is not None:
        raise UserError(
            f"the residual stream of this {type(model).__name__} cannot be made narrower: {reason}. Leave its width as "
            "it is, or take a model with a head for classification, tagging or questions."
        )


def narrows_any(model: nn.Module) -> bool:
    """Whether any norm is made to narrow."""
    return bool(_narrowing(model))


def _last_passed(layout: PrunableLayout) -> Iterator[Member]:
    """Weights and biases, outside of sub-layers, whose outputs are the stream."""
    inside = {member.module for group in layout.groups for member in group.members}
    for axis in layout.residual:
        module, _, name = axis.parameter.rpartition(".")
        if axis.axis == 0 and module not in inside:
            yield Member(module, name, bias=None)


def _stream_modules(layout: PrunableLayout) -> list[str]:
    return list(dict.fromkeys(member.module for member in _last_passed(layout)))


def _narrowing(model: nn.Module) -> list[SurvivingNorm]:
    return [module for module in model.modules() if isinstance(module, SurvivingNorm)]
