"""Exact compaction: finding heads and units that no longer do anything, and a smaller model without them.

Legend: `O` out features, `H` heads, `K` key/value heads, `D` head size, `F` units of a feed-forward layer.
"""

from __future__ import annotations

import copy
import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.compaction.blending import is_blended
from bplightning.compaction.compact_config import QUANT_METHOD, record_widths
from bplightning.compaction.narrow_stream import ordinary_norms, surviving
from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import (
    Group,
    kind_of,
    make_bias,
    member_selections,
    resize,
    size_of,
    stream_width,
    writer_columns,
)
from bplightning.layout.routing import is_dropped
from bplightning.masks.masking import has_masks

PLAN_VERSION = 2
"""Raised by one whenever a field of the plan is renamed, removed, added or changes its meaning. 1 had no ``stream``."""


STREAM = "stream"
"""Name of what a plan says of the residual stream."""


@dataclass(frozen=True)
class GroupPlan:
    """What stays of one group.

    Attributes:
        name: The group's name, for example ``encoder.3.self``; by stack and layer, never a module path.
        kind: ``"heads"`` (key/value heads where queries are grouped) or ``"units"``; of the stream ``"dimensions"``.
        kept: Indices of what stays, ascending.
        total: How many there were.
        new_bias: Whether the output or down projection gets a bias it did not have, to hold the constant of what went.
    """

    name: str
    kind: str
    kept: tuple[int, ...]
    total: int
    new_bias: bool = False

    def check(self) -> None:
        """Refuse what no plan says; a plan may come from anywhere.

        Raises:
            UserError: It is of another kind, or keeps what there is not.
        """
        kind, total, new_bias = self.kind, self.total, self.new_bias
        kinds = ("dimensions",) if self.name == STREAM else ("heads", "units")
        if kind not in kinds or type(total) is not int or total < 0 or type(new_bias) is not bool:
            raise UserError(
                f"the compaction plan's {self.name[:40]!r} must have a kind, {' or '.join(kinds)}, their total, "
                f"0 or more, and new_bias, true or false; it has {str((kind, total, new_bias))[:80]}: make it again."
            )
        ascending = all(type(index) is int for index in self.kept) and list(self.kept) == sorted(set(self.kept))
        if not ascending or not all(0 <= index < total for index in self.kept):
            raise UserError(
                f"the compaction plan's kept {kind} of {self.name[:40]} must be ascending whole numbers from 0 to "
                f"{total - 1}, got {str(list(self.kept)[:8])[:80]}: make the plan again."
            )


@dataclass(frozen=True)
class CompactionPlan:
    """Which heads and units stay, as plain indices.

    Attributes:
        model_type: The architecture it was made for, as in the model's configuration.
        groups: What stays of each group of the layout.
        stream: Which dimensions of the residual stream stay; `None` for all of them.
    """

    model_type: str
    groups: tuple[GroupPlan, ...]
    stream: GroupPlan | None = None

    @classmethod
    def of(cls, model: nn.Module) -> CompactionPlan:
        """Find what is dead in a model whose weights hold zeros, wherever they came from.

        Args:
            model: A transformers model without masks.

        Raises:
            UserError: The architecture is not known, or the model still carries masks or is not wholly simplified.
        """
        _refuse_unfinished(model)
        layout = PrunableLayout.of(model)
        return _plan(layout, _find_dead(layout))

    @property
    def heads(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, kept indices and original count of every attention group."""
        return [(group.name, group.kept, group.total) for group in self.groups if group.kind == "heads"]

    @property
    def units(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, kept indices and original count of every feed-forward group."""
        return [(group.name, group.kept, group.total) for group in self.groups if group.kind == "units"]

    def to_json(self) -> str:
        """The plan as a JSON document, one group a line."""
        lines = ",\n    ".join(json.dumps(asdict(group)) for group in self.groups)
        return (
            f'{{\n  "version": {PLAN_VERSION},\n  "model_type": {json.dumps(self.model_type)},\n'
            f'  "stream": {json.dumps(self.stream and asdict(self.stream))},\n  "groups": [\n    {lines}\n  ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> CompactionPlan:
        """The plan that `to_json` wrote.

        Raises:
            UserError: It is not such a document.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            version = document["version"]
            if type(version) is not int or not 1 <= version <= PLAN_VERSION:
                raise UserError(
                    f"the compaction plan has version {repr(version)[:40]}, this bplightning reads 1 to "
                    f"{PLAN_VERSION}: make the plan again."
                )
            groups = tuple(GroupPlan(**{**group, "kept": tuple(group["kept"])}) for group in document["groups"])
            stream = document["stream"] if version > 1 else None
            if stream is not None:
                stream = GroupPlan(**{**stream, "kept": tuple(stream["kept"])})
            plan = cls(document["model_type"], groups, stream)
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise UserError(f"this is not a compaction plan ({reason}): give the text that to_json wrote.") from error
        if unknown := sorted(set(document) - {"version", "model_type", "groups", STREAM if version > 1 else "groups"}):
            raise UserError(f"the compaction plan has {unknown[0][:40]!r}, which plans have not: make the plan again.")
        if stream is not None and (stream.name != STREAM or not stream.kept):
            raise UserError(f"the compaction plan's {STREAM!r} must keep some of its dimensions: make the plan again.")
        names = [group.name for group in groups]
        if not isinstance(plan.model_type, str) or not all(isinstance(name, str) for name in names):
            raise UserError("the compaction plan must name its model type and groups in words: make the plan again.")
        if len(set(names)) < len(names):
            raise UserError("the compaction plan names a group twice: make the plan again.")
        for group in (*groups, *([] if stream is None else [stream])):
            group.check()
        return plan


@torch.no_grad()
def compact(model: nn.Module, plan: CompactionPlan | None = None) -> nn.Module:
    """A smaller model that computes the same function, for every query token that sees at least one key.

    The given model is left as it is; beside it only the compact one takes memory.

    Args:
        model: A transformers model whose weights hold zeros, wherever they came from; in any dtype, on any device.
        plan: What to keep; by default all that is not dead. A plan made from another copy of the model applies too.

    Returns:
        The compact model, of the same class; its plan is its attribute ``compaction_plan``.

    Raises:
        UserError: The architecture is not known; the model still carries masks, is not wholly simplified or is
            quantized; the plan was made for other sizes, or removes what is not dead in this model.
    """
    _refuse_unfinished(model)
    _refuse_quantized(model)
    layout = PrunableLayout.of(model)
    dead = _find_dead(layout)
    if plan is None:
        plan = _plan(layout, dead)
    else:
        _check_applies(plan, layout, dead)
    stream = None if plan.stream is None else torch.tensor(plan.stream.kept, dtype=torch.long)
    kept = {group.name: torch.tensor(group.kept, dtype=torch.long) for group in plan.groups}
    # What `resize` replaces need not be copied first.
    replaced = [
        model.get_submodule(module)._parameters[name] for module, name in member_selections(layout, kept, stream)
    ]
    smaller: nn.Module = copy.deepcopy(model, {id(parameter): parameter for parameter in replaced})
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
    return smaller


@dataclass(frozen=True)
class _Dead:
    """What is dead in one group.

    Attributes:
        group: The group.
        weight: The weight ``(O, I)`` of its output or down projection.
        removable: Which heads or units can go, on the model's device.
        values: What each column of the output or down projection is multiplied with once its head or unit is
            removable, float64; 0 where the column is zero.
    """

    group: Group
    weight: Tensor
    removable: Tensor
    values: Tensor

    def constant(self, kept: tuple[int, ...]) -> Tensor | None:
        """What all that is not `kept` adds to the output, float64 ``(O,)``; `None` for nothing."""
        removed = torch.ones_like(self.removable)
        removed[list(kept)] = False
        columns = writer_columns(self.group, removed.nonzero().flatten())
        columns = columns[self.values[columns] != 0]
        if len(columns) == 0:
            return None
        return self.weight[:, columns].double() @ self.values[columns]


@torch.no_grad()
def _find_dead(layout: PrunableLayout) -> dict[str, _Dead]:
    attention = {group.name: _dead_heads(layout.model, group) for group in layout.attention}
    return attention | {group.name: _dead_units(layout.model, group) for group in layout.feed_forward}


def _dead_heads(model: nn.Module, group: AttentionGroup) -> _Dead:
    """A head is a constant when each of its dimensions has a zero value row or a zero output column.

    Softmax rows sum to one, so a zero value row leaves the value's bias whatever query and key do.
    """
    output = group.output.weight(model)
    shape = (group.kv_heads, group.heads // max(group.kv_heads, 1), group.head_size)
    constant_values = _zero(group.value.weight(model), dim=1).view(shape[0], 1, shape[2])
    unread = _zero(output, dim=0).view(shape)
    values = torch.where(unread, 0, _bias(model, group.value).view(shape[0], 1, shape[2]))
    return _Dead(group, output, (constant_values | unread).flatten(1).all(dim=1), values.flatten())


def _dead_units(model: nn.Module, group: FeedForwardGroup) -> _Dead:
    """A unit is dead when nothing reads it, or when its value is a constant; an expert's, when no token goes there.

    One expert cannot be narrower than those it is stacked with, so its other dead units stay, as zeros.
    """
    down = group.down.weight(model)
    if group.down.expert is not None:
        removable = down.new_full((group.width,), is_dropped(model, group), dtype=torch.bool)
        return _Dead(group, down, removable, torch.zeros_like(removable, dtype=torch.float64))
    activation = operator.attrgetter(group.activation)(model)
    constant, *others_constant = [_zero(up.weight(model), dim=1) for up in group.up]
    first, *others = [_bias(model, up) for up in group.up]
    values: Tensor = activation(first)
    for other_constant, other in zip(others_constant, others, strict=True):  # gated: the factor beside the activation
        values = torch.where(constant, values, 1) * torch.where(other_constant, other, 1)
        zero = values == 0
        constant = (constant & other_constant) | zero
    unread = _zero(down, dim=0)
    return _Dead(group, down, unread | constant, torch.where(constant & ~unread, values, 0))


def _zero(weight_OI: Tensor, *, dim: int) -> Tensor:
    """Which rows (`dim` 1) or columns (`dim` 0) are zero throughout; NaN is not."""
    if weight_OI.shape[dim] == 0:
        return torch.ones(weight_OI.shape[1 - dim], dtype=torch.bool, device=weight_OI.device)
    return (weight_OI.amax(dim) == 0) & (weight_OI.amin(dim) == 0)


def _bias(model: nn.Module, member: Member) -> Tensor:
    """The bias of `member` in float64, zeros where it has none."""
    bias = member.bias_of(model)
    weight = member.weight(model)
    return weight.new_zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()


def _plan(layout: PrunableLayout, dead: Mapping[str, _Dead]) -> CompactionPlan:
    groups = []
    for group in layout.groups:
        kept = tuple((~dead[group.name].removable).nonzero().flatten().tolist())
        has_bias = group.members[-1].bias_of(layout.model) is not None
        new_bias = not has_bias and dead[group.name].constant(kept) is not None
        groups.append(GroupPlan(group.name, kind_of(group), kept, size_of(group), new_bias))
    return CompactionPlan(_model_type(layout.model), tuple(groups), _stream_plan(layout))


def _stream_plan(layout: PrunableLayout) -> GroupPlan | None:
    alive = surviving(layout)
    if alive is None:
        return None
    return GroupPlan(STREAM, "dimensions", tuple(alive.tolist()), stream_width(layout))


def _model_type(model: Any) -> str:
    return str(model.config.model_type)


def _check_applies(plan: CompactionPlan, layout: PrunableLayout, dead: Mapping[str, _Dead]) -> None:
    names, planned = [group.name for group in layout.groups], [group.name for group in plan.groups]
    model_type = _model_type(layout.model)
    if plan.model_type != model_type or planned != names:
        raise UserError(
            f"the compaction plan is for a {plan.model_type!r} model with {len(planned)} groups, this is a "
            f"{model_type!r} model with {len(names)}: "
            "apply a plan to a copy of the model it was made from."
        )
    width = stream_width(layout)
    whole = GroupPlan(STREAM, "dimensions", tuple(range(width)), width)
    asked, own = plan.stream or whole, _stream_plan(layout) or whole
    if asked != own:  # norms count what is kept, so that it must be exactly what lives
        raise UserError(
            f"the compaction plan keeps {len(asked.kept)} of {asked.total} dimensions of the residual stream, and not "
            f"the {len(own.kept)} of {own.total} that live in this model: apply it to a copy with the same zeros."
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


def _refuse_unfinished(model: nn.Module) -> None:
    if has_masks(model):
        raise UserError("the model still carries masks: harden the strategy first, so that its weights hold the zeros.")
    if is_blended(model):
        raise UserError(
            "the model is not wholly simplified yet, for its training ended before the end of simplification's "
            "schedule: go on to that, or take a checkpoint from after it."
        )


def _refuse_quantized(model: nn.Module) -> None:
    quantization = getattr(getattr(model, "config", None), "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in (None, QUANT_METHOD):
        raise UserError(f"the model is quantized ({method}): compact it first, quantize the compact model then.")
