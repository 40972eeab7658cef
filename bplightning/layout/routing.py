"""Routers that send no token to some of their experts, as if those did not exist.

A router's logits of dropped experts are minus infinity, so their probability is zero and the others' sum to one, as in
a router that never had them. `bplightning.layout.resizing` later removes their rows and weights.

Legend: `T` tokens, `E` experts of the router, `K` experts a token goes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bplightning.errors import UserError
from bplightning.layout.groups import FeedForwardGroup
from bplightning.layout.instance_mixin import Mixin, mix_in, take_out
from bplightning.layout.prunable_layout import PrunableLayout


class RouterMask(nn.Module):
    """The experts that a router may send tokens to; it belongs to a strategy, and so to its `state_dict`.

    Args:
        experts: Number of experts.

    Attributes:
        kept: Binary ``(E,)``; all of them at first.
    """

    kept: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(experts, dtype=torch.bool))

    @torch.no_grad()
    def set_kept(self, kept_E: Tensor) -> None:
        """Route to these experts from now on, at least as many as each token goes to.

        Args:
            kept_E: Binary ``(E,)``.
        """
        self.kept.copy_(kept_E)


class RoutesAround(Mixin):
    """Mixed into the class of a router that must not send tokens to some of its experts."""

    weight: Tensor
    top_k: int
    router_mask: RouterMask

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route as Mixtral, Qwen-MoE and OLMoE do, with logits of minus infinity for dropped experts.

        Args:
            hidden_states: Inputs of the layer, ``(..., hidden size)``.

        Returns:
            Logits ``(T, E)``, and the weights and indices of each token's experts, ``(T, K)``.
        """
        logits = functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), self.weight)
        kept_E = self.router_mask.kept.to(logits.device)
        logits = logits.masked_fill(~kept_E, -torch.inf)
        weights, indices = logits.softmax(-1, dtype=torch.float).topk(self.top_k, dim=-1)
        normalized = getattr(self, "norm_topk_prob", None)  # Mixtral, which has none, normalizes and stays in 32 bits
        if normalized is not False:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights if normalized is None else weights.to(logits.dtype), indices


def mask_router(model: nn.Module, router: str, mask: RouterMask) -> None:
    """Make a router of `model` obey a mask: also after weights are hardened, until the model is compacted.

    Args:
        model: The model.
        router: Dotted name of the router.
        mask: Its mask, on any device.
    """
    module = model.get_submodule(router)
    mix_in(module, RoutesAround)
    module.__dict__["router_mask"] = mask  # not as an attribute, which would register it as a sub-module


def routers_of(layout: PrunableLayout) -> dict[str, list[FeedForwardGroup]]:
    """Name of each router to its experts, in the order of its rows."""
    routers: dict[str, list[FeedForwardGroup]] = {}
    for group in layout.feed_forward:
        if group.router is not None:
            routers.setdefault(group.router, []).append(group)
    return routers


def experts_per_token(model: nn.Module, router: str) -> int:
    """Number of experts that each token is sent to."""
    module: Any = model.get_submodule(router)
    return int(module.top_k)


def is_dropped(model: nn.Module, expert: FeedForwardGroup) -> bool:
    """Whether an expert is dropped: no token is sent to it any more.

    Args:
        model: The model it belongs to.
        expert: A feed-forward group of the model's layout.
    """
    if expert.router is None:
        return False
    module = model.get_submodule(expert.router)
    index = expert.down.expert
    return isinstance(module, RoutesAround) and index is not None and not bool(module.router_mask.kept[index])


def kept_experts(layout: PrunableLayout, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The experts that each router keeps: one is removed when none of its units stays.

    Args:
        layout: The layout of the model to resize.
        kept: Group name to the indices that stay.

    Returns:
        Router to the indices of its experts that stay, ascending.

    Raises:
        UserError: Routers keep different numbers of experts, or fewer than each token is sent to.
    """
    found = {}
    for router, experts in routers_of(layout).items():
        stay = [index for index, expert in enumerate(experts) if len(kept[expert.name])]
        found[router] = torch.tensor(stay, dtype=torch.long, device="cpu")
        each = experts_per_token(layout.model, router)
        if len(stay) < each:
            raise UserError(f"{router} keeps {len(stay)} experts and sends each token to {each}: keep {each} or more.")
    counts = sorted({len(indices) for indices in found.values()})
    if len(counts) > 1:
        raise UserError(
            f"layers keep different numbers of experts, from {counts[0]} to {counts[-1]}, but transformers' "
            "configuration holds one number for all layers: keep the same number in each."
        )
    return found


def set_experts(model: nn.Module, layout: PrunableLayout, kept: Mapping[str, Tensor]) -> None:
    """Tell a model whose routers and experts were sliced how many are left, and remove the routers' masks.

    All layers keep the same number, so the model is an ordinary one with fewer experts, which loads anywhere.

    Args:
        model: The model.
        layout: Its layout before slicing.
        kept: Router name to the indices of its experts that stay.
    """
    experts = routers_of(layout)
    for router, indices in kept.items():
        count = len(indices)
        if count == len(experts[router]):
            continue
        gate: Any = model.get_submodule(router)
        owner: Any = model.get_submodule(experts[router][0].down.module)
        gate.num_experts = owner.num_experts = count
        take_out(gate, RoutesAround)
        gate.__dict__.pop("router_mask", None)
        whole: Any = model
        whole.config.num_experts = count
        if hasattr(whole, "num_experts"):  # the loss of a causal model uses it too
            whole.num_experts = count
