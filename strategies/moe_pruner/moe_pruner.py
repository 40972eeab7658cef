"""MoE-Pruner (arXiv 2410.12013): one-shot pruning of a mixture of experts, weighted by its router.

Legend: `O` out features, `I` in features, `E` experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bplightning.contracts.capabilities import OneShot
from bplightning.contracts.target import NO_TARGET, Target, shown
from bplightning.contracts.targeted import Targeted
from bplightning.errors import UserError
from bplightning.layout.groups import Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group
from bplightning.layout.routing import RouterMask, experts_per_token, mask_router, routers_of
from bplightning.masks.granularity import check_granularity, masks_of
from bplightning.masks.masking import Mask
from bplightning.strategies.moe_pruner.expert_inputs import LayerInputs
from bplightning.strategies.shared.wanda_scores import keep_n_of_m, keep_per_row, wanda_scores


class MoEPruner(Targeted, OneShot):
    """Weights and experts of a mixture of experts, no training.

    Prunes once, without training: by weights, by what they meet, and by how much the router lets through.

    A weight is worth ``|W_ij| * ||X_j * Gate||_2`` (MoE-Pruner, arXiv 2410.12013): the norm of its input feature over
    the calibration tokens that are routed to its expert, each scaled by its router weight as the model uses it. What is
    worth least in each row goes. Layers are pruned one after the other, by the inputs that the pruned layers before
    give, in one pass over the calibration data each; no weight is changed. An expert that no calibration token reaches
    is pruned by magnitude.

    With `experts`, whole experts go before that: in each layer those whose weights are worth least together. The router
    then chooses among the others, compaction takes them away, and the inputs of those that stay are gathered anew.

    Departs from the paper in that matrices without a router (attention, dense and shared feed-forward layers) are
    pruned as well, with ``Gate = 1``, which is Wanda (arXiv 2306.11695), and in that whole experts can go.

    Args:
        target: What to keep in each row: a density, half by default; 1 where only whole experts are to go.
        pattern: N:M, such as 2:4, in place of a target: of each M neighbours in a row N stay. Default: none.
        experts: Experts kept in each layer, at least as many as a token goes to. Default: all.
        router_weighted: Whether tokens count by their router weights; false is Wanda, all tokens of an expert alike.
        attention: Whether attention is pruned, too.
    """

    default_target: ClassVar[Target] = Target(density=0.5)

    def __init__(
        self,
        target: Target = NO_TARGET,
        pattern: str | None = None,
        experts: int | None = None,
        router_weighted: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.take_target(target)
        assert self.target.density is not None, "there is a default"
        if pattern is not None and ":" not in check_granularity(pattern):
            raise UserError(f"pattern is {pattern!r}; it must be N:M, such as 2:4, for N of each M neighbours.")
        if pattern is not None and target.kind is not None:
            raise UserError(
                f"target.{target.kind} is {shown(target.value)} and pattern is {pattern}, which keeps a density of its "
                "own: leave one of them out."
            )
        self.target_density = self.target.density
        self.pattern = pattern
        self.experts = experts
        self.router_weighted = router_weighted
        self.attention = attention
        self.routers = nn.ModuleDict()

    def attach(self, layout: PrunableLayout) -> None:
        self.layout = layout
        routers = routers_of(layout)
        if self.experts is not None:
            self._check_experts(self.experts)
            for router, experts in routers.items():
                mask = RouterMask(len(experts)).to(experts[0].down.weight(layout.model).device)
                self.routers[_key(router)] = mask
                mask_router(layout.model, router, mask)
        self._mask_of: dict[Member, Mask] = {}
        for group in layout.groups if self.attention else layout.feed_forward:
            for name, grid in masks_of(layout.model, group, self.pattern or "element", scores=False):
                self.add_mask(name, grid, layout)
                self._mask_of |= {cover.member: grid for cover in grid.covers}

    def _check_experts(self, keep: int) -> None:
        routers = routers_of(self.layout)
        config: Any = self.layout.model.config
        if not routers:
            raise UserError(
                f"experts is {keep}, and a model of type {config.model_type!r} has none: leave it "
                "out, or take a mixture of experts such as Mixtral."
            )
        for router, experts in routers.items():
            each = experts_per_token(self.layout.model, router)
            if not each <= keep <= len(experts):
                raise UserError(
                    f"experts is {keep}, and {router} sends each token to {each} of {len(experts)}: keep a number "
                    f"from {each} to {len(experts)}."
                )

    @torch.no_grad()
    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[dict[str, Tensor]],
        loss_fn: Callable[[Any, dict[str, Tensor]], Tensor],
    ) -> None:
        layers: dict[tuple[str, int], list[Group]] = {}
        for group in self.layout.groups:
            if not self._mask_of.keys().isdisjoint(group.members):
                layers.setdefault((group.name.partition(".")[0], group.layer), []).append(group)
        for stack, layer in sorted(layers, key=lambda key: (key[0] == "decoder", key)):  # an encoder's come first
            groups = layers[stack, layer]
            if self.experts is not None:
                self._drop_experts(self._norms(groups, batches), self.experts)
            if self.pattern is not None or self.target_density < 1:
                norms = self._norms(groups, batches)
                for member in norms:
                    mask = self._mask_of[member]
                    mask.set_grid(mask.kept & self._kept(self._scores(member, norms), mask))

    def _norms(self, groups: list[Group], batches: Iterable[dict[str, Tensor]]) -> dict[Member, Tensor]:
        return LayerInputs(self.layout, groups, router_weighted=self.router_weighted).gather(batches)

    def _scores(self, member: Member, norms: Mapping[Member, Tensor]) -> Tensor:
        """What the weights of one matrix are worth, ``(O, I)``; of one at a time, for a layer's take much memory.

        Where no token came by, their magnitude decides.
        """
        norm_I = norms[member]
        return wanda_scores(member.weight(self.layout.model), norm_I if bool(norm_I.any()) else norm_I + 1)

    def _worth(self, members: Sequence[Member], norms: Mapping[Member, Tensor]) -> Tensor:
        """What an expert's weights are worth together; nothing, where no token reaches it."""
        return torch.stack([wanda_scores(each.weight(self.layout.model), norms[each]).sum() for each in members]).sum()

    def _kept(self, scores_OI: Tensor, mask: Mask) -> Tensor:
        if mask.pattern is None:
            return keep_per_row(scores_OI, self.target_density)
        return keep_n_of_m(scores_OI, *mask.pattern)

    def _drop_experts(self, norms: Mapping[Member, Tensor], keep: int) -> None:
        """Route to the experts worth most only; what the others' masks keep is nothing, so that density knows."""
        for router, experts in routers_of(self.layout).items():
            if experts[0].down not in norms:  # another layer's
                continue
            worth_E = torch.stack([self._worth(expert.members, norms) for expert in experts])
            kept_E = torch.zeros_like(worth_E, dtype=torch.bool).scatter(0, worth_E.topk(keep).indices, True)
            cast(RouterMask, self.routers[_key(router)]).set_kept(kept_E)
            for expert, stays in zip(experts, kept_E, strict=True):
                for member in expert.members:
                    self._mask_of[member].set_grid(self._mask_of[member].kept & stays)


def _key(router: str) -> str:
    return router.replace(".", "-")
