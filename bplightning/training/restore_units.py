"""Restoring removed feed-forward units in the masks of a model, the best first.

Legend: `R`, `C` grid rows and columns, `F` units of a feed-forward layer, `N` tiles of a grid along them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning.compaction.plan import CompactionPlan
from bplightning.layout.groups import FeedForwardGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask
from bplightning.training.module import PruningModule


def restore_units(module: PruningModule, multiple_of: int) -> PreTrainedModel:
    """Restore the best of the removed units in the masks, until each layer's width is a multiple, or the dense one.

    A layer that was wholly removed stays so. A tile that several units share restores all of them. Restored units have
    the weights that they had when they were removed; a gate opens as far as the least open one that stayed.

    Args:
        module: A trained module; its masks are changed.
        multiple_of: Widths become multiples of this number of units.

    Returns:
        A copy of its model, hardened.
    """
    layout, masks = module.layout, module.strategy.all_masks
    assert layout is not None
    while True:  # dead units are found as in compaction; each pass opens a mask, or is the last
        hardened = module.hardened_copy()
        kept = {name: indices for name, indices, _ in CompactionPlan.of(hardened).units}
        opened = [open_best(layout, masks, group, kept[group.name], multiple_of) for group in layout.feed_forward]
        if not any(opened):
            return hardened


@dataclass(frozen=True)
class _Side:
    """The place of a layer's units in the grid of a mask.

    Attributes:
        mask: The mask.
        axis: The grid's axis that runs along the units.
        tile_F: The index on that axis of each unit.
    """

    mask: Mask
    axis: int
    tile_F: Tensor

    def over_units(self, values_RC: Tensor) -> Tensor:
        """Values of the grid, with the units' axis first, on the CPU."""
        return (values_RC if self.axis == 0 else values_RC.T).detach().cpu()


@torch.no_grad()
def open_best(
    layout: PrunableLayout, masks: Sequence[Mask], group: FeedForwardGroup, kept: Sequence[int], multiple_of: int
) -> bool:
    """Restore the units that a layer lacks, as far as its masks have removed them.

    Args:
        layout: Layout of the masked model.
        masks: All masks.
        group: The layer.
        kept: Indices of its units.
        multiple_of: The width becomes a multiple of this number of units.

    Returns:
        Whether any mask was changed.
    """
    lacking = min(-len(kept) % multiple_of, group.width - len(kept))  # 0, if nothing is left
    sides = _sides(masks, group)
    if not lacking or not sides or any(side.mask.pattern for side in sides):
        return False
    alive_F = torch.zeros(group.width, dtype=torch.bool)
    alive_F[list(kept)] = True
    # A tile with a live unit is not what removed another unit, so it stays unchanged.
    live = [alive_F.view(side.mask.kept.shape[side.axis], -1).any(1) for side in sides]
    shut = [~side.over_units(side.mask.kept).all(1) & ~there for side, there in zip(sides, live, strict=True)]
    held_F = ~alive_F & torch.stack([of[side.tile_F] for side, of in zip(sides, shut, strict=True)]).any(0)
    worth_F = _worth(layout.model, group, sides).masked_fill(~held_F, -torch.inf)
    opened = [of.clone() for of in live]
    back_F = torch.zeros_like(alive_F)
    for unit in worth_F.argsort(descending=True, stable=True)[: int(held_F.sum())].tolist():
        if int(back_F.sum()) >= lacking:
            break
        for side, of in zip(sides, opened, strict=True):
            of[side.tile_F[unit]] = True
        back_F = held_F & torch.stack([of[side.tile_F] for side, of in zip(sides, opened, strict=True)]).all(0)
    for side, of, there in zip(sides, opened, live, strict=True):
        _open(side, of & ~there)
    return bool(back_F.any())


def _sides(masks: Sequence[Mask], group: FeedForwardGroup) -> list[_Side]:
    """Every mask of a layer's projections, once for each axis that runs along units."""
    found = {
        (mask, int((cover.member == group.down) != cover.transposed)): None
        for mask in masks
        for cover in mask.covers
        if cover.member in group.members
    }
    units = torch.arange(group.width)
    return [_Side(mask, axis, units * mask.kept.shape[axis] // group.width) for mask, axis in found]


def _worth(model: nn.Module, group: FeedForwardGroup, sides: Sequence[_Side]) -> Tensor:
    """The value of each unit ``(F,)``: the sum of its learned scores, or else the squared norm of its weights."""
    learned = [(side, side.mask.scores) for side in sides if side.mask.scores is not None]
    if learned:
        return sum(
            (side.over_units(scores_RC).double().sum(1)[side.tile_F] for side, scores_RC in learned), torch.zeros(())
        )
    up = [member.weight(model).double().square().sum(1) for member in group.up]
    return torch.stack([*up, group.down.weight(model).double().square().sum(0)]).sum(0).cpu()


def _open(side: _Side, tiles_N: Tensor) -> None:
    """Keep all entries of these tiles."""
    mask = side.mask
    tiles_N = tiles_N.to(mask.kept.device)
    new_RC = (tiles_N[:, None] if side.axis == 0 else tiles_N) & ~mask.kept
    if mask.gate is not None and mask.scores is not None and bool(mask.kept.any()):
        mask.scores.masked_fill_(new_RC, float(mask.scores[mask.kept].min()))  # gates increase with scores
    mask.set_grid(mask.kept | new_RC)


@contextmanager
def masks_restored(masks: Sequence[Mask]) -> Iterator[None]:
    """Restore the masks and their scores at the end."""
    before = [(mask.kept.clone(), None if mask.scores is None else mask.scores.detach().clone()) for mask in masks]
    try:
        yield
    finally:
        with torch.no_grad():
            for mask, (kept_RC, scores_RC) in zip(masks, before, strict=True):
                mask.set_grid(kept_RC)
                if mask.scores is not None and scores_RC is not None:
                    mask.scores.copy_(scores_RC)
