"""A short training that is steered to a target."""

from __future__ import annotations

from typing import Any

import torch
from transformers import get_linear_schedule_with_warmup

from bplightning.contracts.strategy import Progress
from bplightning.strategies.soft_movement import SoftMovement

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "max_position_embeddings": 160,
}


STEPS, WARMUP, END = 1000, 50, 500


def train(strategy: SoftMovement, *, steps: int = END + 50, pull: float = 1.0) -> list[float]:
    """Scores pulled up by what each entry is worth, with noise, and down by the penalty; density at each step."""
    generator = torch.Generator().manual_seed(0)
    worth = [
        pull * torch.randn(mask.scores.shape, generator=generator).exp() / mask.scores.numel()
        for mask in strategy.all_masks
    ]
    (group,) = strategy.parameter_groups(total_steps=STEPS)
    optimizer = torch.optim.AdamW([group])
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    seen = []
    strategy.advance(Progress(0, STEPS, WARMUP))
    for step in range(1, steps + 1):
        strategy.penalty().backward()  # type: ignore[union-attr]
        for mask, value in zip(strategy.all_masks, worth, strict=True):
            noise = 1 + 3 * torch.randn(value.shape, generator=generator)
            mask.scores.grad -= value * noise
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        strategy.advance(Progress(step, STEPS, WARMUP))
        seen.append(float(strategy.density()["total"]))
    return seen


def landing(strategy: SoftMovement) -> dict[str, Any]:
    snap = strategy.snap()
    assert snap is not None
    return snap
