"""The last move of masks, by which what steering left to do is done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bplightning.masks.masking import Mask


class Snap(nn.Module):
    """The masks before and after their last move, so that each can be had again.

    Args:
        masks: The masks that will move.
    """

    done: Tensor

    def __init__(self, masks: Sequence[Mask]) -> None:
        super().__init__()
        self.register_buffer("done", torch.tensor(False, device=masks[0].kept.device))
        self.count = len(masks)
        for index, mask in enumerate(masks):
            self.register_buffer(f"before_{index}", mask.kept.clone())
            self.register_buffer(f"after_{index}", mask.kept.clone())

    def grids(self, *, before: bool) -> list[Tensor]:
        """The grid ``(R, C)`` of each mask before the move, or after it."""
        return [self.get_buffer(f"{'before' if before else 'after'}_{index}") for index in range(self.count)]

    @torch.no_grad()
    def record(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Note a move, on the device; of the same one told again, as when a run goes on from there, the first counts.

        Args:
            before: The grid ``(R, C)`` of each mask before it.
            after: And after it.
        """
        for kept_RC, now_RC in zip(self.grids(before=True), before, strict=True):
            kept_RC.copy_(torch.where(self.done, kept_RC, now_RC))
        for kept_RC, now_RC in zip(self.grids(before=False), after, strict=True):
            kept_RC.copy_(now_RC)
        self.done.fill_(True)

    def changed(self) -> int:
        """How many entries of all grids the move changed; waits for the device."""
        pairs = zip(self.grids(before=True), self.grids(before=False), strict=True)
        return sum(int((before_RC ^ after_RC).sum()) for before_RC, after_RC in pairs)
