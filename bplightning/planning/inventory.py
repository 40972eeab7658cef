"""The parts of a model that a plan lists: parameters that stay, tied parts, groups that cannot shrink."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, member_selections, size_of
from bplightning.masks.masking import Mask
from bplightning.planning.schema import NotPruned, PlannedGroup, Tie


def alone(layout: PrunableLayout, group: Group) -> PrunableLayout:
    """The layout with `group` as its only group."""
    if isinstance(group, AttentionGroup):
        return replace(layout, attention=(group,), feed_forward=())
    return replace(layout, attention=(), feed_forward=(group,))


def obstacle(layout: PrunableLayout, group: Group) -> str | None:
    """Why compaction cannot remove heads or units of `group`, in the words of its own error; `None` if it can."""
    if size_of(group) == 0:
        return None
    try:
        member_selections(alone(layout, group), {group.name: torch.arange(size_of(group) - 1)})
    except UserError as error:
        return str(error)
    return None


def shrinks(group: PlannedGroup) -> bool:
    """Whether a group can lose heads or units: not where N of M neighbours stay in every row."""
    return group["obstacle"] is None and any(":" not in each for each in group["granularity"])


def embeddings(layout: PrunableLayout) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and tables of the model's embeddings, without position biases, which belong to attention."""
    biases = {group.position_bias.name for group in layout.attention if group.position_bias is not None}
    for name, parameter in layout.model.named_parameters():
        owner, _, _ = name.rpartition(".")
        if isinstance(layout.model.get_submodule(owner), nn.Embedding) and name not in biases:
            yield name, parameter


def not_pruned(layout: PrunableLayout) -> list[NotPruned]:
    """All parameters that are not prunable weights, by kind, the largest first."""
    model = layout.model
    base = getattr(model, "base_model", model)
    inside = {id(parameter) for parameter in base.parameters()}
    weights = {member.name for member in layout.members}
    biases = {f"{member.module}.{member.bias}" for member in layout.members}
    tables = {name for name, _ in embeddings(layout)}
    position_biases = {group.position_bias.name for group in layout.attention if group.position_bias is not None}

    def what(name: str, parameter: nn.Parameter) -> str:
        owner = model.get_submodule(name.rpartition(".")[0])
        if name in tables:
            return "embeddings"
        if name in biases:
            return "biases of prunable layers"
        if name in position_biases:
            return "position bias"
        if "norm" in type(owner).__name__.lower():
            return "norms"
        if ".pooler." in f".{name}":
            return "pooler"
        return "others" if id(parameter) in inside else "head of the task"

    counts: Counter[str] = Counter()
    names: dict[str, dict[str, None]] = {}
    for name, parameter in model.named_parameters():
        if name not in weights:
            counts[what(name, parameter)] += parameter.numel()
            names.setdefault(what(name, parameter), {})[_pattern(name)] = None
    return [NotPruned(what=each, parameters=count, names=list(names[each])) for each, count in counts.most_common()]


def ties(layout: PrunableLayout, masks: Sequence[Mask]) -> list[Tie]:
    """Parts that share entries of a mask, a tensor, a parameter or a position bias."""
    return [
        *_shared_masks(layout, masks),
        *_shared_tensors(layout.model),
        *_shared_storage(layout),
        *_shared_position_biases(layout),
    ]


def _shared_masks(layout: PrunableLayout, masks: Sequence[Mask]) -> Iterator[Tie]:
    owners = {member: group for group in layout.groups for member in group.members}
    roles: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for mask in masks:
        groups = list(dict.fromkeys(owners[cover.member] for cover in mask.covers if cover.member in owners))
        if len(mask.covers) > 1:
            words = _shared_by(groups[0]) if len(groups) == 1 else "weights of several groups share entries"
            if not groups:
                words = "parameters outside of the groups share entries"
            roles.setdefault(words, []).append(mask.role)
            names.setdefault(words, []).extend([group.name for group in groups] or [mask.role])
    for words in names:
        yield Tie(how="mask", what=f"{', '.join(dict.fromkeys(roles[words]))}: {words}", names=names[words])


def _shared_by(group: Group) -> str:
    if not isinstance(group, AttentionGroup):
        ups = "row of the up projection" if len(group.up) == 1 else f"rows of the {len(group.up)} up projections"
        return f"a unit's {ups} and its column of the down projection share one entry"
    if group.position_query is not None or group.position_key is not None:
        return "a head's query, key, value and output, and its projections of positions, share one entry"
    if group.heads == group.kv_heads:
        return "a head's query, key, value and output share one entry"
    queries = group.heads // max(group.kv_heads, 1)
    return f"a key/value head and its {queries} query heads share one entry in query, key, value and output"


def _shared_tensors(model: nn.Module) -> Iterator[Tie]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for several in names.values():
        if len(several) > 1:
            yield Tie(how="tensor", what=f"{' = '.join(several)}: one parameter, counted once", names=several)


def _shared_storage(layout: PrunableLayout) -> Iterator[Tie]:
    members = Counter(member.name for member in layout.members)
    patterns: dict[tuple[str, int], list[str]] = {}
    for name, count in members.items():
        if count > 1:
            patterns.setdefault((_pattern(name), count), []).append(name)
    for (pattern, count), names in patterns.items():
        yield Tie(how="storage", what=f"{pattern}: each stores {count} prunable weights in one parameter", names=names)


def _shared_position_biases(layout: PrunableLayout) -> Iterator[Tie]:
    users: dict[str, list[str]] = {}
    for group in layout.attention:
        if group.position_bias is not None:
            users.setdefault(group.position_bias.name, []).append(group.name)
    for name, groups in users.items():
        what = f"{name}: one relative position bias of {len(groups)} attention layers, {groups[0]} to {groups[-1]}"
        yield Tie(how="position_bias", what=what, names=groups)


def _pattern(name: str) -> str:
    """A parameter's name without the number of its layer.

    >>> _pattern("encoder.layer.11.output.dense.weight")
    'encoder.layer.*.output.dense.weight'
    """
    return re.sub(r"\.\d+\b", ".*", name)
