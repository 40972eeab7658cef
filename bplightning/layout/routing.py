"""Routing around experts: a router that sends no token to some of its experts, as if they were not there.

A router's logits of dropped experts are minus infinity, so that their probability is zero and the others' sum to one:
what a router computes that never had them. `bplightning.layout.resizing` then takes their rows and weights away.

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
    """Which of its experts a router may send tokens to; a strategy holds it, and so its `state_dict`.

    Args:
        experts: Experts there are.

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
    """Mixed into the class of a router some of whose experts no token may go to."""

    weight: Tensor
    top_k: int
    router_mask: RouterMask

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What Mixtral's, Qwen-MoE's and OLMoE's routers compute, with minus infinity for experts that are dropped.

        Args:
            hidden_states: Inputs of the layer, ``(..., hidden size)``.

        Returns:
            Logits ``(T, E)``, weights and indices of the experts that each token goes to, ``(T, K)``.
        """
        logits = functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), self.weight)
        kept_E = self.router_mask.kept.to(logits.device)
        logits = logits.masked_fill(~kept_E, -torch.inf)
        weights, indices = logits.softmax(-1, dtype=torch.float).topk(self.top_k, dim=-1)
        normalized = getattr(self, "norm_topk_prob", None)  # Mixtral's has no such setting, normalizes and stays wide
        if normalized is not False:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights if normalized is None else weights.to(logits.dtype), indices


def mask_router(model: nn.Module, router: str, mask: RouterMask) -> None:
    """Make a router of `model` obey a mask, for good: it stays when weights are hardened, until the model is compacted.

    Args:
        model: The model.
        router: Dotted name of the router.
        mask: Its mask; on whatever device.
    """
    module = model.get_submodule(router)
    mix_in(module, RoutesAround)
    module.__dict__["router_mask"] = mask  # no attribute, which would make it a part of the model


def routers_of(layout: PrunableLayout) -> dict[str, list[FeedForwardGroup]]:
    """Name of each router to the experts it chooses among, in the order of its rows."""
    routers: dict[str, list[FeedForwardGroup]] = {}
    for group in layout.feed_forward:
        if group.router is not None:
            routers.setdefault(group.router, []).append(group)
    return routers


def experts_per_token(model: nn.Module, router: str) -> int:
    """Experts that each token goes to."""
    module: Any = model.get_submodule(router)
    return int(module.top_k)


def is_dropped(model: nn.Module, expert: FeedForwardGroup) -> bool:
    """Whether no token may go to an expert any more.

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
    """Which experts each router keeps: one goes when no unit of it stays.

    Args:
        layout: The layout of the model to resize.
        kept: Group name to the indices that stay.

    Returns:
        Router to the indices of its experts that stay, ascending.

    Raises:
        UserError: Routers keep different numbers, or fewer than a token goes to.
    """
    found = {}
    for router, experts in routers_of(layout).items():
        stay = [index for index, expert in enumerate(experts) if len(kept[expert.name])]
        found[router] = torch.tensor(stay, dtype=torch.long, device="cpu")
        each = experts_per_token(layout.model, router)
        if len(stay) < each:
            raise UserError(
                f"{router} keeps {len(stay)} experts and sends each token to {each}: keep so many, or more."
            )
    counts = sorted({len(indices) for indices in found.values()})
    if len(counts) > 1:
        raise UserError(
            f"layers keep different numbers of experts, from {counts[0]} to {counts[-1]}, and transformers' "
            "configuration holds one number for all of them: keep as many in each layer."
        )
    return found


def set_experts(model: nn.Module, layout: PrunableLayout, kept: Mapping[str, Tensor]) -> None:
    """Tell a model whose routers and experts were sliced how many experts are left, and take the routers' masks away.

    All layers keep as many, so the model is an ordinary one of that number, which loads anywhere.

    Args:
        model: The model.
        layout: Its layout before that.
        kept: Router to the indices of its experts that stay.
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
        if hasattr(whole, "num_experts"):  # a causal model's loss counts them too
            whole.num_experts = count
