"""Leaving out whole layers that the residual stream passes unchanged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.compaction.skipped_sublayers import is_skipped
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout, base_prefix, stacks_of
from bplightning.layout.resizing import Group, size_of


@torch.no_grad()
def without_empty_layers(compact: nn.Module) -> tuple[nn.Module, dict[str, list[int]]]:
    """A copy of a compact model, for its weights alone, without the layers that the residual stream passes unchanged.

    In a pre-norm stack such a layer has neither heads nor units. A constant that it adds goes into the bias of the last
    feed-forward layer before it; where there is none, the layer stays. Elsewhere it is a layer whose sub-layers are all
    skipped with their norms. One layer of each stack stays in any case.

    Args:
        compact: The compact model, which stays unchanged and shares its parameters with the copy.

    Returns:
        The copy, which is not meant to be run, and the indices left out by stack.
    """
    shared = {id(parameter): parameter for parameter in compact.parameters()}
    short: nn.Module = copy.deepcopy(compact, shared)
    layout = PrunableLayout.of(short)
    left_out: dict[str, list[int]] = {}
    for stack in stacks_of(short, layout.family):
        if stack.config.layers is None:
            continue
        path = base_prefix(short) + stack.layers
        layers: Any = short.get_submodule(path)
        out: list[int] = []
        before: Sequence[Group] = ()
        for index in range(len(layers)):
            groups = [each for each in layout.groups if each.layer == index and each.name.startswith(f"{stack.name}.")]
            if len(layers) - len(out) > 1 and groups and _passes(short, groups, before):
                out.append(index)
            else:
                before = groups
        for index in reversed(out):
            _hand_on_position_bias(short, layout, f"{path}.{index}.", f"{path}.{index + 1}.")
            del layers[index]
        left_out[stack.name] = out
    return short, left_out


def _passes(model: nn.Module, groups: Sequence[Group], before: Sequence[Group]) -> bool:
    """Whether the stream passes a layer unchanged, at the latest once its constant is added before it."""
    if all(is_skipped(model, group) for group in groups):
        return True
    if any(size_of(group) or group.adds is not None for group in groups):
        return False
    biases = [bias.double() for group in groups if (bias := group.members[-1].bias_of(model)) is not None]
    constant: Tensor | None = torch.stack(biases).sum(0) if biases else None
    if constant is None or not constant.any():
        return True
    for group in before:
        if not isinstance(group, AttentionGroup) and group.adds is None and group.router is None:
            bias = group.members[-1].bias_of(model)
            if bias is not None:
                owner = model.get_submodule(group.members[-1].module)
                owner.register_parameter(str(group.members[-1].bias), nn.Parameter((bias.double() + constant).to(bias)))
                return True
    return False


def _hand_on_position_bias(model: nn.Module, layout: PrunableLayout, old: str, new: str) -> None:
    """Give the table of position biases that other layers look up (T5) to the layer that will be the first."""
    for name in {group.position_bias.module for group in layout.attention if group.position_bias is not None}:
        if not name.startswith(old):
            continue
        users = [each for each in layout.attention if each.position_bias and each.position_bias.module == name]
        if any(not f"{each.module}.".startswith(old) for each in users):
            parent, _, child = name.removeprefix(old).rpartition(".")
            model.get_submodule(new + parent).register_module(child, model.get_submodule(name))
