"""What magnitude and movement share: the entries worth most are kept, to a density that falls on the schedule."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bplightning.contracts.scheduled import ScheduledStrategy
from bplightning.contracts.target import NO_TARGET, Target, shown
from bplightning.contracts.targeted import Targeted
from bplightning.contracts.window import PRUNING_WINDOW, PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask
from bplightning.masks.selection import keep_largest, keep_of_neighbours, keep_within
from bplightning.strategies.shared.uniform import require_whole


class TopK(Targeted, ScheduledStrategy):
    """Keeps the top fraction of all entries by what they are worth (`worth`), exactly as many as asked for.

    Args:
        target: What to keep at the end of the schedule: a density, a quarter by default. An N:M granularity keeps its
            own, and no target can be given where all are N:M.
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), N:M
            such as 2:4, head (attention) or unit (feed-forward). Default: element; a decoder's as the encoder's.
        scope: Where weights compete: `local`, within each matrix, which all reach the density; or `global`, in one
            ranking of the whole model.
        window: When it prunes.
        refresh_every: Optimizer steps between two choices of what to keep, 1 or more.
    """

    keeps_patterns: ClassVar[bool] = True
    keeps_uniform: ClassVar[bool] = True  # in each layer by itself, which is scope local
    default_target: ClassVar[Target] = Target(density=0.25)

    def __init__(
        self,
        target: Target = NO_TARGET,
        granularity: dict[str, str] | None = None,
        scope: Literal["local", "global"] = "local",
        window: PruningWindow = PRUNING_WINDOW,
        refresh_every: int = 1,
    ) -> None:
        super().__init__(granularity, window)
        self.take_target(target)
        if scope not in ("local", "global"):
            raise UserError(
                f"scope is {scope!r}; it must be 'local', each matrix by itself, or 'global', all together."
            )
        if self.target.uniform and scope == "global":
            raise UserError(
                "target.uniform is true and scope is 'global', in which layers keep different numbers: leave one of "
                "them out."
            )
        if refresh_every < 1:
            raise UserError(f"refresh_every is {refresh_every}; it must be 1 or more optimizer steps.")
        assert self.target.density is not None, "there is a default"
        self.target_density = self.target.density
        self.target_given = target.kind is not None
        self.scope = scope
        self.refresh_every = refresh_every

    @abstractmethod
    def worth(self, mask: Mask) -> Tensor:
        """What each entry of a mask is worth, ``(R, C)``."""

    def keep(self, values_RC: Tensor, density: float) -> Tensor:
        """Which entries of a mask to keep, ``(R, C)``, where it is looked at by itself; by default those worth most."""
        return keep_largest(values_N=values_RC.flatten(), density=density).view(values_RC.shape)

    def attach(self, layout: PrunableLayout) -> None:
        super().attach(layout)
        self.layout = layout
        if self.target.uniform:
            require_whole(self.granularity, self.all_masks)
        free = {name: mask for name, mask in self.masks.items() if mask in self._free_masks()}
        if self.target_given and not free and len(self.masks):
            patterns = dict.fromkeys(self.granularity[mask.role] for mask in self.all_masks)
            raise UserError(
                f"target.{self.target.kind} is {shown(self.target.value)} and granularity is {' and '.join(patterns)} "
                "throughout, which keeps a density of its own: leave the target out, or give a role a granularity "
                "that is not N:M."
            )
        pools = {name: [mask] for name, mask in free.items()}
        if self.scope == "global" and free:
            pools = {"the model": list(free.values())}
        for name, masks in pools.items():
            weights = sum(mask.total_weights for mask in masks)
            largest = max(mask.weights_per_entry for mask in masks)
            if self.target_density * weights < largest / 2:
                raise UserError(
                    f"target.density {self.target_density:g} of {name}'s {weights} weights is less than half an entry "
                    f"of {largest} that is kept or dropped as one: give a greater density, a finer granularity"
                    f"{', or scope global' if self.scope == 'local' else ''}."
                )

    @torch.no_grad()
    def prune(self, amount: float, *, steps_after: int) -> None:
        if steps_after % self.refresh_every:  # counted from the end, so that the target is chosen there exactly
            return
        density = 1 + (self.target_density - 1) * amount
        for mask in self.all_masks:
            if mask.pattern is not None:
                kept, of = mask.pattern
                count = of - round((of - kept) * amount)
                mask.set_grid(keep_of_neighbours(values_RC=self.worth(mask), count=count, of=of))
        masks = self._free_masks()
        if density == 1:
            for mask in masks:
                mask.kept.fill_(True)
        elif self.scope == "local":
            for mask in masks:
                mask.set_grid(self.keep(self.worth(mask), density))
        elif masks:
            self._prune_together(masks, density)

    def _prune_together(self, masks: list[Mask], density: float) -> None:
        values_N = torch.cat([self.worth(mask).flatten() for mask in masks])
        if len({mask.weights_per_entry for mask in masks}) == 1:
            kept_N = keep_largest(values_N=values_N, density=density)
        else:
            each = [torch.full_like(mask.kept, mask.weights_per_entry, dtype=torch.int64) for mask in masks]
            budget = round(density * sum(mask.total_weights for mask in masks))
            weights_N = torch.cat([weights_RC.flatten() for weights_RC in each])
            kept_N = keep_within(values_N=values_N, weights_N=weights_N, budget=budget)
        for mask, kept in zip(masks, kept_N.split([mask.kept.numel() for mask in masks]), strict=True):
            mask.set_grid(kept.view(mask.kept.shape))

    def _free_masks(self) -> list[Mask]:
        """The masks that the density is shared out to: N:M keeps its own."""
        return [mask for mask in self.all_masks if mask.pattern is None]
