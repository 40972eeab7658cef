"""Which blocks are left inside the heads that stay: the zeros of a masked model, tile by tile, as short text.

Legend: `O` out features, `I` in features, `R`, `C` tiles along them, `H` heads, `D` head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bplightning.groups import AttentionGroup
from bplightning.layout import PrunableLayout
from bplightning.report_schema import Pattern

FINEST = 32
"""Edge of the smallest tile, the papers' block; smaller only where a head is."""

MOST = 32
"""Tiles along one side of a weight; tiles of greater models are larger, but never larger than a head."""

PROJECTIONS = ("query", "key", "value", "output")


@torch.no_grad()
def head_patterns(layout: PrunableLayout) -> list[Pattern]:
    """How much is left of each tile of every attention sub-layer's projections.

    Args:
        layout: The layout of a masked model, its masks hardened to zeros.
    """
    return [_pattern(layout, group) for group in layout.attention if group.kv_heads]


def tile_edge(size: int, count: int = 1) -> int:
    """Edge of the tiles that `count` pieces of `size` weights each are cut into, so that none lies across two pieces.

    >>> tile_edge(768), tile_edge(64, 12), tile_edge(128, 32), tile_edge(16, 4)
    (32, 32, 128, 16)
    """
    divisors = [edge for edge in range(min(FINEST, size), size + 1) if size % edge == 0]
    return next((edge for edge in divisors if count * size // edge <= MOST), size)


def levels(weight_OI: Tensor, tile: tuple[int, int]) -> str:
    """A digit a tile, 0 for nothing left to 9 for all of it, in between by eighths; rows of tiles apart by spaces.

    >>> levels(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 2.0]]), (2, 2))
    '93'
    """
    rows, columns = weight_OI.shape[0] // tile[0], weight_OI.shape[1] // tile[1]
    left_RC = (weight_OI != 0).float().view(rows, tile[0], columns, tile[1]).mean((1, 3))
    digits_RC = torch.where(left_RC == 1, 9, torch.where(left_RC == 0, 0, 1 + (8 * left_RC).floor())).int()
    return " ".join("".join(map(str, row)) for row in digits_RC.tolist())


def _pattern(layout: PrunableLayout, group: AttentionGroup) -> Pattern:
    weights = {name: getattr(group, name).weight(layout.model) for name in PROJECTIONS}
    along_heads = tile_edge(group.head_size, group.heads)
    tiles = {name: (along_heads, tile_edge(weight.shape[1])) for name, weight in weights.items()}
    tiles["output"] = (tile_edge(weights["output"].shape[0]), along_heads)
    return Pattern(
        name=group.name,
        tile=list(tiles["query"]),
        projections={name: levels(weight, tiles[name]) for name, weight in weights.items()},
    )
