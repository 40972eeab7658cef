"""An ordinary checkpoint of a compact model, which loads where nobody knows this package.

config.json gives one number of heads and one of units for all layers of a stack. So every layer is padded with zeros up
to the widest, which changes nothing: a head whose values are zero, and a unit that nothing reads, add zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from bplightning.compaction.compact_config import CONFIG_FIELD
from bplightning.compaction.empty_layers import without_empty_layers
from bplightning.compaction.no_norm import has_no_norm
from bplightning.compaction.skipped_sublayers import is_skipped
from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, reader_rows, size_of, stream_width, writer_columns

OWN_FIELDS = (CONFIG_FIELD, "quantization_config")
"""Fields of config.json that only this package reads."""


NO_NORM = "its norms are NoNorm (train without simplification.no_norm)"
NARROW = "its residual stream was made narrower (set the strategy to keep its width)"


@dataclass(frozen=True)
class Portable:
    """An ordinary model that computes what a compact one does.

    Attributes:
        model: The model, of the same class.
        changes: Each configuration field that is smaller than the dense model's, with its value there and here.
    """

    model: nn.Module
    changes: dict[str, tuple[int, int]]


@torch.no_grad()
def as_portable(compact: nn.Module) -> Portable:
    """An ordinary model with the same function: all layers of a stack are as wide as the widest of them.

    Args:
        compact: A compact model, which stays unchanged.

    Raises:
        UserError: config.json cannot say what the model computes, or the ordinary model would be as large as the dense.
    """
    source: Any = compact
    short, left_out = without_empty_layers(compact)
    layout = PrunableLayout.of(short)
    said = {name: value for name, value in source.config.to_dict().items() if name not in OWN_FIELDS}
    dense_config = type(source.config).from_dict(said)
    with torch.device("meta"):
        dense = PrunableLayout.of(_built(source, dense_config))
    _require_sayable(layout, dense)
    needed, before = _values(layout, dense), _values(dense, dense)
    config = _smallest(type(source.config), _shortened(said, layout, left_out), layout, (needed, before))
    fresh = _built(source, config).to(source.device, source.dtype)
    after = _values(PrunableLayout.of(fresh), dense)
    changes = {name: (value, after[name]) for name, value in before.items() if after[name] < value}
    if not changes and hasattr(source.config, CONFIG_FIELD):
        raise _no_room(layout, needed)
    _fill(fresh, layout)
    fresh.train(source.training)
    if getattr(source, "generation_config", None) is not None:
        fresh.generation_config = copy.deepcopy(source.generation_config)
    return Portable(fresh, changes)


def _built(model: Any, config: Any) -> Any:
    """A new model of the same class."""
    return type(model)._from_config(config, attn_implementation=model.config._attn_implementation)


def _require_sayable(layout: PrunableLayout, dense: PrunableLayout) -> None:
    """Refuse what no configuration of transformers can say, whatever the widths."""
    skipped = next((group.name for group in layout.groups if is_skipped(layout.model, group)), None)
    what = None
    if has_no_norm(layout.model):
        what = NO_NORM
    elif stream_width(layout) < stream_width(dense):
        what = NARROW
    elif skipped is not None:
        what = f"{skipped} is skipped with its norm (set the strategy to keep sub-layers)"
    if what is not None:
        raise unsayable(layout, what)


def unsayable(layout: PrunableLayout, what: str) -> UserError:
    """The refusal of a model that no configuration of transformers can say.

    Args:
        layout: The model.
        what: What it does that cannot be said, such as `NO_NORM`.
    """
    return _refusal(layout, f"cannot say what this one computes: {what}")


def _values(layout: PrunableLayout, dense: PrunableLayout) -> dict[str, int]:
    """Each configuration field of the widths, with the smallest value that has room for every layer of `layout`."""
    values: dict[str, int] = {}
    there = {group.name: group for group in dense.groups}
    for stack in layout.family.stacks:
        fields = stack.config
        groups = [group for group in layout.groups if group.name.startswith(f"{stack.name}.")]
        for group in groups:
            of_dense = there[group.name]
            if isinstance(group, AttentionGroup) and isinstance(of_dense, AttentionGroup):
                heads = _heads_needed(layout, group, of_dense, dense)
                found = {fields.kv_heads: heads, fields.heads: heads * (of_dense.heads // of_dense.kv_heads)}
            else:
                found = {fields.units: size_of(group)} if group.members[-1].expert is None else {}
            for name, value in found.items():
                if name is not None:
                    values[name] = max(values.get(name, 1), value)
        if fields.layers is not None and groups:
            values[fields.layers] = 1 + max(group.layer for group in groups)
    return values


def _heads_needed(layout: PrunableLayout, group: AttentionGroup, of_dense: Group, dense: PrunableLayout) -> int:
    """Key/value heads of a layer, with those whose columns of a position bias other layers look up."""
    if group.position_bias is not None:
        return group.position_bias.weight(layout.model).shape[1]
    return group.kv_heads + (_unsaid_constant(layout, group, of_dense, dense) is not None)


def _unsaid_constant(layout: PrunableLayout, group: Group, other: Group, other_layout: PrunableLayout) -> Tensor | None:
    """The bias that compaction gave an output which has none in the architecture (Qwen2), where it is not zero."""
    bias = group.members[-1].bias_of(layout.model)
    if bias is None or other.members[-1].bias_of(other_layout.model) is not None or not bias.any():
        return None
    return bias


def _smallest(kind: Any, said: dict[str, Any], layout: PrunableLayout, sizes: tuple[Mapping[str, int], ...]) -> Any:
    """The smallest configuration with room for all layers that its own rules allow: heads may have to divide a width.

    Args:
        kind: Class of the configuration.
        said: The dense configuration, with the number of layers that are left.
        layout: The layout that there is to be room for.
        sizes: Of each field the value needed, and the dense one.
    """
    needed, dense = sizes
    changed = said | {name: value for name, value in needed.items() if value < dense[name]}
    for fields in (stack.config for stack in layout.family.stacks):
        heads, kv_heads = fields.heads, fields.kv_heads
        if heads is None or fields.head_size is None or needed.get(heads, 0) >= dense.get(heads, 0):
            continue
        queries = 1 if kv_heads is None else dense[heads] // dense[kv_heads]
        for count in range(needed[heads], dense[heads] + 1, queries):
            changed |= {heads: count, fields.head_size: layout.attention[0].head_size}
            if kv_heads is not None:
                changed[kv_heads] = count // queries
            with suppress(ValueError, StrictDataclassError):  # the configuration's own rule, as Llama has one
                kind.from_dict(changed)
                break
    return kind.from_dict(changed)


def _shortened(said: dict[str, Any], layout: PrunableLayout, left_out: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A configuration without the kinds of the layers that were left out."""
    kinds = said.get("layer_types")
    out = {index for stack in layout.family.stacks for index in left_out.get(stack.name, ())}
    if not kinds or not out:
        return said
    return said | {"layer_types": [kind for index, kind in enumerate(kinds) if index not in out]}


def _fill(fresh: nn.Module, layout: PrunableLayout) -> None:
    """Write the numbers of `layout` into a model with room for them, and zeros into the rest of its heads and units."""
    filled = PrunableLayout.of(fresh)
    inside = {(member.module, name) for member in filled.members for name in (member.parameter, member.bias)}
    old = layout.model.state_dict()
    for name, value in fresh.state_dict().items():
        module, _, own = name.rpartition(".")
        if (module, own) not in inside and name in old:
            value[tuple(slice(size) for size in old[name].shape)] = old[name]
    for member in filled.members:
        for part in (member.weight(fresh), member.bias_of(fresh)):
            if part is not None:
                part.zero_()
    device = next(fresh.parameters()).device
    for group, source in zip(filled.groups, layout.groups, strict=True):
        slots = torch.arange(size_of(source), device=device)
        if isinstance(source, AttentionGroup) and source.position_bias is not None:
            slots = torch.tensor(source.position_columns, dtype=torch.long, device=device)
        *readers, writer = zip(group.members, source.members, strict=True)
        for member, given in readers:
            rows = reader_rows(group, member, slots)
            member.weight(fresh)[rows] = given.weight(layout.model)
            bias, given_bias = member.bias_of(fresh), given.bias_of(layout.model)
            if bias is not None and given_bias is not None:
                bias[rows] = given_bias
        member, given = writer
        member.weight(fresh)[:, writer_columns(group, slots)] = given.weight(layout.model)
        bias, given_bias = member.bias_of(fresh), given.bias_of(layout.model)
        if bias is not None and given_bias is not None:
            bias.copy_(given_bias)
        constant = _unsaid_constant(layout, source, group, filled)
        if constant is not None:
            _hold(fresh, group, constant, len(slots))


def _hold(fresh: nn.Module, group: Group, constant: Tensor, place: int) -> None:
    """Let a head of zeros add a constant: its values are 1 in one dimension, whatever it attends to."""
    value_bias = group.value.bias_of(fresh) if isinstance(group, AttentionGroup) else None
    if not isinstance(group, AttentionGroup) or value_bias is None or place >= group.kv_heads:
        raise UserError(
            f"portable is true, but {group.name} adds a constant to the stream, for which a "
            f"{type(fresh).__name__} has no bias: use the compact folder, or `export`."
        )
    value_bias[place * group.head_size] = 1
    group.output.weight(fresh)[:, place * group.head_size * (group.heads // group.kv_heads)] = constant


def _no_room(layout: PrunableLayout, needed: Mapping[str, int]) -> UserError:
    """What would fit, where nothing would be smaller."""
    if not needed:
        return _refusal(layout, "has no field for widths that is known here (Stack.config in its family's row)")
    fields = ", ".join(f"{name} (here {value})" for name, value in needed.items())
    return _refusal(
        layout,
        f"has one value for all layers of {fields}, and the widest layer needs the dense model's: nothing would be "
        "smaller. What fits is a model whose layers all lost some of these, as target.uniform makes it",
    )


def _refusal(layout: PrunableLayout, rule: str) -> UserError:
    config: Any = layout.model.config
    return UserError(
        f"portable is true, but config.json of a {config.model_type!r} model {rule}. Use the compact folder, or "
        "`export`."
    )
