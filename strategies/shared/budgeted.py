"""What one-shot strategies by heads and units share: a budget, a search for what is lost least within it, the masks.

Legend: `E` examples, `N` heads or units of a layer, or of all layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bplightning.contracts.capabilities import OneShot, Prepared
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import NO_TARGET, Target
from bplightning.contracts.targeted import Targeted
from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink
from bplightning.masks.granularity import masks_of
from bplightning.masks.masking import Mask
from bplightning.strategies.shared.head_gates import gradients_by_example
from bplightning.strategies.shared.mask_search import best_counts
from bplightning.strategies.shared.size_targets import SizeTarget
from bplightning.strategies.shared.targets import size_target
from bplightning.strategies.shared.uniform import WHOLE, levelled


class Budgeted(Targeted, OneShot, Prepared):
    """Keeps the heads and units of a trained network that its loss would miss most, as many as a budget allows.

    A subclass says what the loss would miss (`losses`); it may change what is kept, and weights (`refine`).

    Args:
        target: What to keep: FLOPs, half of them by default, or a speed-up as measured.

    Raises:
        UserError: The target is of another kind, or keeps everything.
    """

    target_kinds: ClassVar[tuple[str, ...]] = ("flops", "latency_speedup")
    keeps_uniform: ClassVar[bool] = True
    default_target: ClassVar[Target] = Target(flops=0.5)
    older_names: ClassVar[Mapping[str, str]] = {"target": "size_target"}

    def __init__(self, target: Target = NO_TARGET) -> None:
        super().__init__()
        self.take_target(target)
        measured_by = size_target(self.target)
        assert measured_by is not None, "there is a default"
        self.size_target: SizeTarget = measured_by

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, gradients_EN: Tensor) -> Tensor:
        """What is lost without each head or unit of a layer.

        Args:
            gradients_EN: Gradient of each example's loss by what each is multiplied with.

        Returns:
            ``(N,)``, 0 or more.
        """

    def counts(
        self, lost_heads_N: Tensor, lost_units_N: Tensor, share: Callable[[int], Callable[[int], float]]
    ) -> tuple[int, int] | None:
        """How many of the best heads and units to keep; by default those of which least is lost (`best_counts`).

        Args:
            lost_heads_N: What is lost without each head, the best first.
            lost_units_N: The same of units.
            share: From a number of heads and one of units to the share that is left.
        """
        return best_counts(
            head_losses_N=lost_heads_N, unit_losses_N=lost_units_N, share=share, budget=self.size_target.share
        )

    def refine(
        self,
        kept: dict[str, Tensor],
        gradients: Mapping[str, Tensor],
        groups: list[Group],
        batches: Iterable[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Change what is kept, as many of each layer, and what the model computes with it; by default nothing.

        Args:
            kept: Name of each group to a binary ``(N,)``.
            gradients: Name of each group to ``(E, N)``.
            groups: The groups in the order in which they are computed; those that are computed several times are not
                among them.
            batches: The calibration examples.

        Returns:
            What is kept.
        """
        return kept

    # -- the contract --------------------------------------------------------------------------------------------------

    def attach(self, layout: PrunableLayout) -> None:
        self.layout = layout
        self.groups: list[Group] = can_shrink(layout)
        if not self.groups:
            raise UserError(
                "none of the model's layers can lose heads or units one by one: take a strategy that zeroes weights."
            )
        for group in self.groups:
            granularity = "head" if isinstance(group, AttentionGroup) else "unit"
            for name, mask in masks_of(layout.model, group, granularity, scores=False):
                self.add_mask(name, mask, layout)
                self.register_buffer(f"chosen_{_key(group)}", mask.kept.clone())
        self.size_target.attach(layout, self.all_masks)
        self._require_reachable()

    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        self.size_target.prepare(dense)
        self._require_reachable()

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[dict[str, Tensor]],
        loss_fn: Callable[[Any, dict[str, Tensor]], Tensor],
    ) -> None:
        if next(iter(batches), None) is None:
            raise UserError("there was no batch to calibrate with: give some training data.")
        gradients, order = gradients_by_example(model, self.groups, batches, loss_fn)
        kept = self._search({name: self.losses(gradients_EN) for name, gradients_EN in gradients.items()})
        by_name = {group.name: group for group in self.groups}
        once = [by_name[name] for name in order if order.count(name) == 1]
        for name, kept_N in self.refine(kept, gradients, once, batches).items():
            self.chosen(by_name[name]).copy_(kept_N[:, None])

    def advance(self, progress: Progress) -> None:
        if self.target_reached(progress):
            for group in self.groups:
                self.mask(group).set_grid(self.chosen(group))

    def target_reached(self, progress: Progress) -> bool:
        return progress.step >= progress.total_steps

    # -- the search ----------------------------------------------------------------------------------------------------

    def chosen(self, group: Group) -> Tensor:
        """What is to be kept of a group ``(N, 1)``; all of it before calibration."""
        return self.get_buffer(f"chosen_{_key(group)}")

    def mask(self, group: Group) -> Mask:
        """The mask of a group."""
        return self.masks[_key(group)]  # type: ignore[return-value]

    def _search(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What to keep of each group, ``(N,)``: the best of all heads, and of all units, by what is lost a weight."""
        heads = [group for group in self.groups if isinstance(group, AttentionGroup)]
        units = [group for group in self.groups if not isinstance(group, AttentionGroup)]
        lost_heads_N, head_ranks = self._ranked(heads, losses)
        lost_units_N, unit_ranks = self._ranked(units, losses)
        groups: list[Group] = [*heads, *units]
        masks = [self.mask(group) for group in groups]
        device = masks[0].kept.device

        def share(count: int) -> Callable[[int], float]:
            """The first heads stay whatever the cut, the others go; of units stay those before the cut."""
            fixed = [torch.where(ranks_N < count, torch.inf, -torch.inf) for ranks_N in head_ranks]
            scores = [scores_N[:, None].to(device) for scores_N in (*fixed, *(-ranks_N for ranks_N in unit_ranks))]
            left = self.size_target.left(masks, scores)
            return lambda count: float(left(torch.tensor(-float(count), device=device)))

        counts = self.counts(lost_heads_N, lost_units_N, share)
        assert counts is not None, "what can be reached is known by now"
        kept_heads, kept_units = counts
        kept = {group.name: ranks_N < kept_heads for group, ranks_N in zip(heads, head_ranks, strict=True)}
        return kept | {group.name: ranks_N < kept_units for group, ranks_N in zip(units, unit_ranks, strict=True)}

    def _ranked(self, groups: Sequence[Group], losses: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What is lost of each, the best a weight first; and the place of each in that order, by group.

        With a uniform target those of the same rank in their layers have the same place, and go together.
        """
        if not groups:
            return torch.zeros(0), []
        if self.target.uniform:
            masks = [self.mask(group) for group in groups]
            roles = {mask.role: WHOLE[0] for mask in masks}
            even = levelled(masks, [losses[group.name] for group in groups], roles)
            losses = dict(zip((group.name for group in groups), even, strict=True))
        sizes = [len(losses[group.name]) for group in groups]
        lost_N = torch.cat([losses[group.name] for group in groups])
        weights = [self.mask(group).weights_per_entry for group in groups]
        a_weight_N = lost_N / torch.tensor(weights).repeat_interleave(torch.tensor(sizes))
        order_N = a_weight_N.argsort(descending=True, stable=True)
        places_N = torch.arange(len(order_N), dtype=torch.float32)
        if self.target.uniform:
            _, level_N, counts = a_weight_N[order_N].unique_consecutive(return_inverse=True, return_counts=True)
            places_N = (counts.cumsum(0) - counts)[level_N].to(places_N)
        ranks_N = torch.empty(len(order_N)).scatter_(0, order_N, places_N)
        return lost_N[order_N], list(ranks_N.split(sizes))

    def _require_reachable(self) -> None:
        if self.size_target.known:
            nothing = [torch.full_like(mask.kept, -torch.inf, dtype=torch.float32) for mask in self.all_masks]
            left = self.size_target.left(self.all_masks, nothing)(torch.zeros((), device=nothing[0].device))
            self.size_target.require_reachable(float(left), guided=False)


def _key(group: Group) -> str:
    """A group's name among modules and buffers."""
    return group.name.replace(".", "-")
