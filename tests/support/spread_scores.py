"""Masks with scores that are spread out."""

from __future__ import annotations

import torch

from bplightning.strategies.soft_movement import SoftMovement


def spread_scores(strategy: SoftMovement, *, seed: int) -> None:
    """Scores by which whole heads and units go while others stay, whatever the granularity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mask in strategy.all_masks:
            rows, columns = mask.scores.shape
            of_rows, of_columns = (torch.randn(n, generator=generator) for n in (rows, columns))
            mask.scores.copy_(torch.minimum(of_rows[:, None], of_columns))
