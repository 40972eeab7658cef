"""A strategy whose plan is known in advance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tiny_families import ONE_OF_EACH_ROW

from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import granularity_by_role, make_masks
from bplightning.masks.selection import keep_largest, keep_of_neighbours

WHOLE = {"attention": "head", "feed_forward": "unit"}


ROWS = [*ONE_OF_EACH_ROW, "mixtral"]


class Ranked(PruningStrategy):
    """Ranks the entries of the whole model; by itself it keeps all, or from the last step on a fraction."""

    def __init__(self, granularity: Mapping[str, str], density: float = 1.0, refuses: str = "") -> None:
        super().__init__()
        self.granularity = granularity_by_role(dict(granularity), default={})
        self.final = density
        self.refuses = refuses

    def attach(self, layout: PrunableLayout) -> None:
        if self.refuses == "together" and len(layout.groups) > 1:
            raise UserError("too many groups")
        for name, mask in make_masks(layout, self.granularity):
            self.add_mask(name, mask, layout)

    @torch.no_grad()
    def advance(self, progress: Progress) -> None:
        if self.refuses == "schedule":
            raise UserError(f"no step left of {progress.total_steps}")
        if progress.step < progress.total_steps:
            return
        free = [mask for mask in self.all_masks if mask.pattern is None]
        for mask in self.all_masks:
            if mask.pattern is not None and mask.scores is not None:
                mask.set_grid(keep_of_neighbours(values_RC=mask.scores, count=mask.pattern[0], of=mask.pattern[1]))
        if free:
            worth = torch.cat([mask.scores.flatten() for mask in free if mask.scores is not None])
            kept = keep_largest(values_N=worth, density=self.final)
            for mask, part in zip(free, kept.split([mask.kept.numel() for mask in free]), strict=True):
                mask.set_grid(part.view(mask.kept.shape))
