"""Random numbers that every rank draws alike, and that a resumed run draws again."""

from __future__ import annotations

import hashlib
import os

import torch


def generator_of(*, step: int, batch: int, device: torch.device) -> torch.Generator:
    """A generator that follows from the seed of `seed_everything`, the optimizer step and the batch within it.

    Args:
        step: Optimizer steps taken.
        batch: Batches that passed since then, where gradients are accumulated.
        device: Where it is to draw.
    """
    generator = torch.Generator(device)
    seed = f"{os.environ.get('PL_GLOBAL_SEED', 0)} {step} {batch}"
    return generator.manual_seed(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest()))
