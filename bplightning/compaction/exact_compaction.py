"""Exact compaction: a smaller model that computes the same function, without its dead heads and units.

Legend: `O` out features.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from bplightning.compaction.compact_config import QUANT_METHOD, record_widths
from bplightning.compaction.dead_parts import Dead, find_dead
from bplightning.compaction.narrow_stream import ordinary_norms
from bplightning.compaction.plan import STREAM, CompactionPlan, GroupPlan, model_type_of, require_finished, stream_plan
from bplightning.compaction.portable import as_portable
from bplightning.errors import UserError
from bplightning.layout.plain_weights import holds_zeros, with_zeros
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import make_bias, member_selections, resize, size_of, stream_width


@torch.no_grad()
def compact(model: nn.Module, plan: CompactionPlan | None = None, *, portable: bool = False) -> nn.Module:
    """A smaller model that computes the same function, for every query token that sees at least one key.

    The given model stays unchanged, and only the compact one takes additional memory.

    Args:
        model: A transformers model with zeros in its weights, of any origin; in any dtype, on any device. What
            `torch.nn.utils.prune` has masked counts as zeros.
        plan: What to keep; by default everything that is not dead. It may have been made from a copy of the model.
        portable: Whether to pad with zeros what config.json has one width for, so that the model, once saved, loads
            with transformers alone.

    Returns:
        The compact model, of the same class; its plan is its attribute ``compaction_plan``, unless it is portable.

    Raises:
        UserError: The architecture is not supported; the model still has masks, is not wholly simplified, has adapters
            or is quantized; the plan was made for other sizes, or removes parts that are not dead in this model; or no
            portable model would be smaller than the dense one.
    """
    require_finished(model)
    _refuse_quantized(model)
    if holds_zeros(model):
        model = with_zeros(model)
    layout = PrunableLayout.of(model)
    dead = find_dead(layout)
    if plan is None:
        plan = CompactionPlan.without(layout, dead)
    else:
        _check_applies(plan, layout, dead)
    stream = None if plan.stream is None else torch.tensor(plan.stream.kept, dtype=torch.long)
    kept = {group.name: torch.tensor(group.kept, dtype=torch.long) for group in plan.groups}
    # `resize` replaces these, so they need not be copied.
    replaced = [
        model.get_submodule(module)._parameters[name] for module, name in member_selections(layout, kept, stream)
    ]
    smaller: nn.Module = copy.deepcopy(model, {id(parameter): parameter for parameter in replaced})
    own_forward(smaller)
    resize(smaller, layout, kept, stream)
    ordinary_norms(smaller)
    new_biases = []
    for group, group_plan in zip(layout.groups, plan.groups, strict=True):
        writer = group.members[-1]
        if group_plan.new_bias:
            make_bias(smaller, writer)
            new_biases.append(group.name)
        constant = dead[group.name].constant(group_plan.kept)
        bias = writer.bias_of(smaller)
        if constant is not None:
            assert bias is not None
            bias.copy_(bias.double() + (constant if stream is None else constant[stream.to(constant.device)]))
    record_widths(smaller, dense=layout, new_biases=new_biases)
    smaller.compaction_plan = plan  # type: ignore[assignment]
    return as_portable(smaller).model if portable else smaller


def own_forward(model: nn.Module) -> None:
    """Give a model back the `forward` of its class, without the 16-bit precision that accelerate trains it in.

    Args:
        model: A model that accelerate, which the transformers `Trainer` is built on, may have prepared.
    """
    if model.__dict__.pop("_original_forward", None) is not None:
        model.__dict__.pop("forward", None)


def _check_applies(plan: CompactionPlan, layout: PrunableLayout, dead: Mapping[str, Dead]) -> None:
    names, planned = [group.name for group in layout.groups], [group.name for group in plan.groups]
    model_type = model_type_of(layout.model)
    if plan.model_type != model_type or planned != names:
        raise UserError(
            f"the compaction plan is for a {plan.model_type!r} model with {len(planned)} groups, this is a "
            f"{model_type!r} model with {len(names)}: "
            "apply a plan to a copy of the model that it was made from."
        )
    width = stream_width(layout)
    whole = GroupPlan(STREAM, "dimensions", tuple(range(width)), width)
    asked, own = plan.stream or whole, stream_plan(layout) or whole
    if asked != own:  # norms average over the dimensions that are kept, so these must be exactly the live ones
        raise UserError(
            f"the compaction plan keeps {len(asked.kept)} of {asked.total} dimensions of the residual stream, but "
            f"{len(own.kept)} of {own.total} are in use in this model: apply it to a copy with the same zeros."
        )
    for group, group_plan in zip(layout.groups, plan.groups, strict=True):
        if group_plan.total != size_of(group):
            raise UserError(
                f"the compaction plan is for {group_plan.total} {group_plan.kind} in {group.name}, this model has "
                f"{size_of(group)}: apply a plan to a copy of the model it was made from."
            )
        alive = ~dead[group.name].removable
        alive[list(group_plan.kept)] = False
        needs_bias = group.members[-1].bias_of(layout.model) is None and not group_plan.new_bias
        if alive.any() or (needs_bias and dead[group.name].constant(group_plan.kept) is not None):
            raise UserError(
                f"the compaction plan removes {group_plan.kind} {alive.nonzero().flatten().tolist()[:8]} of "
                f"{group.name}, which are not dead in this model: apply it to a copy with the same zeros."
            )


def _refuse_quantized(model: nn.Module) -> None:
    quantization = getattr(getattr(model, "config", None), "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in (None, QUANT_METHOD):
        raise UserError(f"the model is quantized ({method}): compact it first, then quantize the compact model.")
