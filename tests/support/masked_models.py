"""Tiny models with masks on them."""

from __future__ import annotations

from read_families import make
from torch import nn

from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import masks_of
from bplightning.masks.masking import (
    Mask,
    install_mask,
)


def score(mask: Mask) -> None:
    """Random scores; what is positive is kept."""
    assert mask.scores is not None
    nn.init.normal_(mask.scores)
    mask.set_grid(mask.scores > 0)


def masked(model_type: str, attention: str, feed_forward: str) -> tuple[nn.Module, PrunableLayout, dict[str, Mask]]:
    """A tiny float64 model with masks of random scores on every group."""
    model, layout = make(model_type)
    masks: dict[str, Mask] = {}
    for group in layout.groups:
        granularity = attention if group in layout.attention else feed_forward
        masks |= dict(masks_of(model, group, granularity))
    for mask in masks.values():
        mask.double()
        score(mask)
        install_mask(model, mask)
    return model, layout, masks
