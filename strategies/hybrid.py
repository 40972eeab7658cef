"""Hybrid block pruning (Lagunas, Charlaix, Sanh, Rush 2021, arXiv 2109.04838): the strategy to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bplightning.strategies.soft_movement import SoftMovement


class Hybrid(SoftMovement):
    """Blocks of attention, whole feed-forward units: start here.

    Attention's query, key, value and output in 32 x 32 blocks, feed-forward layers by whole units.

    Blocks let a head shrink until nothing of it is left and it can be removed; a unit's row of the up projection and
    its column of the down projection share one score (arXiv 2109.04838, section 3.3, "hybrid"). Everything else is
    soft movement pruning.
    """

    default_granularity: ClassVar[Mapping[str, str]] = {"attention": "32x32", "feed_forward": "unit"}
