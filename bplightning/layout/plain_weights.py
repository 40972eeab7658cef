"""Weights that a layer holds another way than as a parameter: which ones, and how to make ordinary ones of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from bplightning.errors import UserError

PLAIN = "model = bplightning.plain_weights(model)"
"""The remedy in messages."""

REMEDIES = {
    "pruned by torch.nn.utils.prune, and not yet permanently": f"make it permanent with {PLAIN}",
    "parametrized by torch.nn.utils.parametrize": f"remove the parametrization with {PLAIN}",
    "an adapter of peft": f"merge adapters with {PLAIN}",
    "quantized": "take the model that is not quantized, prune or compact that, and quantize the compact model",
}
"""The ways to hold a weight, and what to do about each."""


def require_plain(model: nn.Module) -> None:
    """Refuse a model with weights that are held another way than as parameters.

    Args:
        model: A model; masks of ours are no such way.

    Raises:
        UserError: There is one.
    """
    found = list(_held_otherwise(model))
    if found:
        name, kind, how = found[0]
        more = f", and {len(found) - 1} more are held otherwise" if found[1:] else ""
        raise UserError(f"the layer {name!r}, a {kind}, is {how}{more}: {REMEDIES[how]}.")


def plain_weights(model: nn.Module) -> nn.Module:
    """A copy of a model in which each layer holds its weight as an ordinary parameter; the given one stays unchanged.

    What `torch.nn.utils.prune` has masked becomes zeros, which `compact` removes; a parametrized weight becomes what it
    was computed to be; adapters of peft are merged into the layers that they adapt.

    Args:
        model: A transformers model, or one that peft has wrapped.

    Raises:
        UserError: It is quantized, or learns a prompt, which no weight can hold.
    """
    plain = with_zeros(model)
    learns_prompt = getattr(getattr(plain, "active_peft_config", None), "is_prompt_learning", False)
    if learns_prompt:
        raise UserError(
            "the model is adapted by a learned prompt, which is in no layer and cannot be merged: take the model "
            "without it."
        )
    if hasattr(plain, "merge_and_unload"):
        plain = plain.merge_and_unload()  # type: ignore[operator]
    _merge(plain)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        plain.__dict__.pop(name, None)
    require_plain(plain)
    return plain


@torch.no_grad()
def with_zeros(model: nn.Module) -> nn.Module:
    """A copy in which weights that torch's own tools prune or parametrize are ordinary ones.

    Args:
        model: Any model.
    """
    # Such weights are results of a computation, which torch does not copy.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    plain: nn.Module = copy.deepcopy(model, computed)
    for module in list(plain.modules()):
        for name in _pruned(module):
            prune.remove(module, name)
        if parametrize.is_parametrized(module):
            _make_plain(module)
    return plain


def _make_plain(module: nn.Module) -> None:
    # Not torch's own `remove_parametrizations`, which changes the class, and that is also the class of the original.
    values = {name: getattr(module, name).clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value))


def holds_zeros(model: nn.Module) -> bool:
    """Whether torch's own tools prune or parametrize a weight of a model."""
    return any(_pruned(module) or parametrize.is_parametrized(module) for module in model.modules())


def _held_otherwise(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Name and kind of each layer that holds a weight otherwise, and how."""
    pruned, parametrized, adapter, quantized = REMEDIES
    for name, module in model.named_modules():
        kind = type(module)
        if _pruned(module):
            yield name, kind.__name__, pruned
        elif parametrize.is_parametrized(module):
            yield name, kind.__name__, parametrized
        elif kind.__module__.startswith("peft."):
            yield name, kind.__name__, adapter
        elif ".quantized." in f"{kind.__module__}." or any(map(_is_quantized, module._parameters.values())):
            yield name, kind.__name__, quantized


def _pruned(module: nn.Module) -> list[str]:
    """Names of the parameters of a module that `torch.nn.utils.prune` masks."""
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]


def _is_quantized(parameter: Any) -> bool:
    # Others' classes of tensors (torchao, quanto, bitsandbytes), and numbers of 8 bits and fewer.
    if parameter is None:
        return False
    return parameter.dtype.itemsize < 2 or not type(parameter).__module__.startswith("torch.")


def _merge(model: nn.Module) -> None:
    """Merge the adapters that transformers' own `add_adapter` has put into a model."""
    children: list[tuple[str, Any]] = list(model.named_children())
    for name, child in children:
        if hasattr(child, "unload_and_optionally_merge_module"):
            setattr(model, name, child.unload_and_optionally_merge_module(True, False, None))
        elif hasattr(child, "merge") and hasattr(child, "base_layer"):
            child.merge()
            setattr(model, name, child.get_base_layer())
        else:
            _merge(child)
