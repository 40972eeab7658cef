"""Batches, and the order that examples come in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler


def length_grouped_sampler(
    lengths: list[int], *, batch_size: int, world_size: int, rank: int
) -> DistributedLengthGroupedSampler:
    """The order of training features: random, but features of one batch have similar lengths.

    It is a `DistributedSampler` even in one process: Lightning then leaves it alone (it would shuffle any other sampler
    again when it wraps it for several ranks) and tells it the epoch. The order follows from seed and epoch alone.

    Args:
        lengths: Tokens of each feature.
        batch_size: Features of a batch of one rank.
        world_size: Number of ranks.
        rank: This process's rank.
    """
    return DistributedLengthGroupedSampler(
        batch_size=batch_size * world_size,
        lengths=lengths,
        num_replicas=world_size,
        rank=rank,
        seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),  # where Lightning's own distributed sampler finds it
    )


def collate(rows: list[dict[str, Any]], *, collator: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Tensor]:
    """A batch as a plain dictionary of tensors, tokens padded to the longest of them."""
    return dict(collator(rows))
