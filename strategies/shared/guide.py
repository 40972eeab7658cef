"""A former compact model as a guide: its heads are protected while the dense model is pruned anew ("rewind").

Legend: `R`, `C` grid rows and columns, `K` key/value heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bplightning.compaction.loading import PLAN_FILE
from bplightning.compaction.plan import CompactionPlan
from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask


class Guide(nn.Module):
    """What a former compact model protects; without one, nothing.

    Args:
        folder: The compact model's folder, or `None`.
    """

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self.folder = folder
        self.free_entries: list[int] = []

    def attach(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:
        """Read the guide, if there is to be one.

        Raises:
            UserError: It cannot be read, or does not fit the model.
        """
        if self.folder is None:
            return
        grids = protected_grids(layout, masks, read_guide(self.folder, layout))
        self.free_entries = [int((~grid_RC).sum()) for grid_RC in grids]
        for index, grid_RC in enumerate(grids):  # not saved: it follows from the folder
            self.register_buffer(f"protected_{index}", grid_RC, persistent=False)

    def protect(self, values: Sequence[Tensor], value: float) -> list[Tensor]:
        """Values ``(R, C)`` of each mask, another one instead where it is protected."""
        if self.folder is None:
            return list(values)
        return [each.masked_fill(grid_RC, value) for each, grid_RC in zip(values, self.buffers(), strict=True)]

    def free(self, masks: Sequence[Mask]) -> list[int]:
        """How many entries of each mask's grid are not protected."""
        return self.free_entries or [mask.kept.numel() for mask in masks]


def read_guide(folder: str | Path, layout: PrunableLayout) -> dict[str, tuple[int, ...]]:
    """Which heads of each attention group a compact model kept.

    Args:
        folder: The compact model's folder.
        layout: The layout of the dense model that is to be pruned.

    Returns:
        Name of each attention group to the indices of its heads (key/value heads where queries are grouped).

    Raises:
        UserError: It is no folder of a compact model, or that of one made from another model.
    """
    file = Path(folder) / PLAN_FILE
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"guide {str(folder)!r} has no readable {PLAN_FILE}, which says which heads a compact model kept "
            f"({type(error).__name__}): give the folder of a compact model, such as a run's compact/."
        ) from error
    try:
        plan = CompactionPlan.from_json(text)
    except UserError as error:
        raise UserError(f"guide {str(folder)!r}: {PLAN_FILE}: {error}") from error
    whole = PrunableLayout.of(layout.model, layout.family)  # the layout may be a part of it
    wanted = {group.name: group.kv_heads for group in whole.attention}
    given = {name: total for name, _, total in plan.heads}
    model_type = str(layout.model.config.model_type)  # type: ignore[union-attr]
    if plan.model_type != model_type or given != wanted:
        odd = next((name for name in sorted({*given, *wanted}) if given.get(name) != wanted.get(name)), None)
        where = "" if odd is None else f" ({odd}: {given.get(odd, 'no')} heads there, {wanted.get(odd, 'none')} here)"
        raise UserError(
            f"guide {str(folder)!r} is a {plan.model_type!r} model compacted from other shapes than this "
            f"{model_type!r} model has{where}: give one compacted from the dense model that is pruned here."
        )
    return {name: kept for name, kept, _ in plan.heads}


def protected_grids(
    layout: PrunableLayout, masks: Sequence[Mask], heads: Mapping[str, tuple[int, ...]]
) -> list[Tensor]:
    """Which tiles touch one of the heads.

    Args:
        layout: What can be pruned.
        masks: The masks.
        heads: Name of each attention group to indices of its heads, as `read_guide` gives them.

    Returns:
        A binary grid ``(R, C)`` for each mask, on its device.
    """
    group_of = {member: group for group in layout.attention for member in group.members}
    grids = []
    for mask in masks:
        grid_RC = torch.zeros_like(mask.kept)
        for cover in mask.covers:
            group = group_of.get(cover.member)
            if group is not None:
                shown_RC = grid_RC.T if cover.transposed else grid_RC  # a view: what is written there is written here
                shown_RC |= _touched(group, cover.member, heads[group.name], shown_RC)
        grids.append(grid_RC)
    return grids


def _touched(group: AttentionGroup, member: Member, heads: Sequence[int], grid_RC: Tensor) -> Tensor:
    """Which rows of a grid over query, key or value, or which columns of one over output, touch the heads."""
    kept_K = grid_RC.new_zeros(group.kv_heads)
    kept_K[list(heads)] = True
    queries = group.heads // group.kv_heads if member in (group.query, group.output) else 1
    kept = kept_K.repeat_interleave(queries * group.head_size)
    if member == group.output:
        return kept.view(grid_RC.shape[1], -1).any(1)[None, :]
    return kept.view(grid_RC.shape[0], -1).any(1)[:, None]
