"""Patterns of the blocks left inside the heads that stay: the zeros of a masked model, tile by tile, as short text.

Legend: `O` out features, `I` in features, `R`, `C` tiles along them, `H` heads, `D` head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bplightning.compaction.narrow_stream import surviving
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.reporting.schema import Pattern

FINEST = 32
"""Edge of the smallest tile, the papers' block; tiles are smaller only where a head is."""

MOST = 32
"""Most tiles along one side of a weight; larger models have larger tiles, but never larger than a head."""

PROJECTIONS = ("query", "key", "value", "output")


@torch.no_grad()
def head_patterns(layout: PrunableLayout) -> list[Pattern]:
    """The fraction left of each tile in the projections of every attention sub-layer, over live dimensions.

    Args:
        layout: The layout of a masked model, its masks hardened to zeros.
    """
    alive = surviving(layout)
    return [_pattern(layout, group, alive) for group in layout.attention if group.kv_heads]


def tile_edge(size: int, count: int = 1) -> int:
    """Edge of the tiles that `count` pieces of `size` weights are cut into, so that no tile crosses two pieces.

    >>> tile_edge(768), tile_edge(64, 12), tile_edge(128, 32), tile_edge(16, 4)
    (32, 32, 128, 16)
    """
    divisors = [edge for edge in range(min(FINEST, size), size + 1) if size % edge == 0]
    return next((edge for edge in divisors if count * size // edge <= MOST), size)


def levels(
    weight_OI: Tensor, tile: tuple[int, int], *, rows: Tensor | None = None, columns: Tensor | None = None
) -> str:
    """One digit per tile, from 0 (nothing left) to 9 (all left), in eighths; rows of tiles are separated by spaces.

    Args:
        weight_OI: A weight with zeros.
        tile: Rows and columns of a tile.
        rows: Indices of the rows that count; `None` for all. A tile without any is left out.
        columns: The same for its columns.

    >>> levels(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 2.0]]), (2, 2))
    '93'
    """
    counted_O, counted_I = _counted(weight_OI.shape[0], rows), _counted(weight_OI.shape[1], columns)
    counted_O, counted_I = counted_O.to(weight_OI.device), counted_I.to(weight_OI.device)
    counted_R, counted_C = counted_O.view(-1, tile[0]).sum(1), counted_I.view(-1, tile[1]).sum(1)
    left_OI = (weight_OI != 0).float() * counted_O[:, None] * counted_I
    sums_RC = left_OI.view(len(counted_R), tile[0], len(counted_C), tile[1]).sum((1, 3))
    left_RC = (sums_RC / (counted_R[:, None] * counted_C))[counted_R > 0][:, counted_C > 0]
    digits_RC = torch.where(left_RC == 1, 9, torch.where(left_RC == 0, 0, 1 + (8 * left_RC).floor())).int()
    return " ".join("".join(map(str, row)) for row in digits_RC.tolist())


def _counted(size: int, indices: Tensor | None) -> Tensor:
    """1 at each of the indices, 0 elsewhere; 1 everywhere for `None`."""
    return torch.ones(size) if indices is None else torch.zeros(size).index_fill(0, indices.cpu(), 1.0)


def _pattern(layout: PrunableLayout, group: AttentionGroup, alive: Tensor | None) -> Pattern:
    weights = {name: getattr(group, name).weight(layout.model) for name in PROJECTIONS}
    along_heads = tile_edge(group.head_size, group.heads)
    tiles = {name: (along_heads, tile_edge(weight.shape[1])) for name, weight in weights.items()}
    tiles["output"] = (tile_edge(weights["output"].shape[0]), along_heads)
    return Pattern(
        name=group.name,
        tile=list(tiles["query"]),
        projections={
            name: levels(
                weight,
                tiles[name],
                rows=alive if name == "output" else None,
                columns=None if name == "output" else alive,
            )
            for name, weight in weights.items()
        },
    )
