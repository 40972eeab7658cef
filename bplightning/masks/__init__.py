"""Masks: binary grids over weights, built from a granularity, with exact gradients."""

from bplightning.masks.granularity import ROLES, granularity_by_role, make_masks, masks_of
from bplightning.masks.masking import Cover, Mask, freeze_masks, has_masks, install_mask, remove_masks, unfreeze_masks
from bplightning.masks.selection import keep_largest, keep_of_neighbours, keep_within

__all__ = [
    "ROLES",
    "Cover",
    "Mask",
    "freeze_masks",
    "granularity_by_role",
    "has_masks",
    "install_mask",
    "keep_largest",
    "keep_of_neighbours",
    "keep_within",
    "make_masks",
    "masks_of",
    "remove_masks",
    "unfreeze_masks",
]
