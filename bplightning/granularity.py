"""From a group and a granularity to the masks that prune it.

Legend: `O` out features, `I` in features, `R`, `C` grid rows and columns, `H` heads, `F` units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from bplightning.errors import UserError
from bplightning.layout import AttentionGroup, FeedForwardGroup, Member
from bplightning.masking import Binarizer, Cover, Mask

GRANULARITIES = "element, row, column, a block such as 32x32, head (attention), unit (feed-forward)"


def masks_of(
    model: nn.Module,
    group: AttentionGroup | FeedForwardGroup,
    granularity: str,
    *,
    binarize: Binarizer,
    scores: bool = True,
) -> Iterator[tuple[str, Mask]]:
    """The masks, with their names, that prune `group` at `granularity`.

    Args:
        model: The model the group belongs to.
        group: What to mask.
        granularity: ``element``, ``row``, ``column``, ``RxC`` (rows x columns of a tile), ``head`` (one entry a head,
            shared by query, key, value and output) or ``unit`` (one entry shared by the up and down projections).
        binarize: From scores to the binary grid.
        scores: Whether the masks have learned scores.

    Raises:
        UserError: The granularity is unknown, does not suit the group, or its block does not divide a weight.
    """

    def tied(covers: tuple[Cover, ...], entries: int) -> Mask:
        total = sum(cover.member.weight(model).numel() for cover in covers)
        return Mask(group.role, covers, (entries, 1), total, binarize, scores)

    if granularity == "head":
        if not isinstance(group, AttentionGroup) or group.heads != group.kv_heads:
            raise _unsuitable(granularity, group)
        covers = tuple(Cover(member) for member in (group.query, group.key, group.value))
        yield group.name, tied((*covers, Cover(group.output, transposed=True)), group.heads)
    elif granularity == "unit":
        if not isinstance(group, FeedForwardGroup):
            raise _unsuitable(granularity, group)
        covers = tuple(Cover(member) for member in group.up)
        yield group.name, tied((*covers, Cover(group.down, transposed=True)), group.width)
    else:
        for label, member in _labelled(group):
            out_features, in_features = member.weight(model).shape
            tile_rows, tile_columns = _tile(granularity, out_features, in_features)
            if out_features % tile_rows or in_features % tile_columns:
                raise UserError(
                    f"block {granularity} does not divide {member.name} of shape {out_features} x {in_features}: its "
                    "rows must divide the first and its columns the second. Choose a block that does."
                )
            grid = out_features // tile_rows, in_features // tile_columns
            total = out_features * in_features
            yield f"{group.name}.{label}", Mask(group.role, (Cover(member),), grid, total, binarize, scores)


def check_granularity(granularity: str) -> str:
    """Return `granularity` when it is one, whatever the group.

    Raises:
        UserError: It is not.
    """
    if granularity not in ("head", "unit"):
        _tile(granularity, 1, 1)
    return granularity


def _tile(granularity: str, out_features: int, in_features: int) -> tuple[int, int]:
    """Rows and columns of one tile."""
    tiles = {"element": (1, 1), "row": (1, in_features), "column": (out_features, 1)}
    if granularity in tiles:
        return tiles[granularity]
    block = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", granularity)
    if block is None:
        raise UserError(f"granularity {granularity!r} is not known; it is one of: {GRANULARITIES}.")
    return int(block[1]), int(block[2])


def _labelled(group: AttentionGroup | FeedForwardGroup) -> Iterator[tuple[str, Member]]:
    if isinstance(group, AttentionGroup):
        yield from zip(("query", "key", "value", "output"), group.members, strict=True)
    else:
        yield from ((f"up{index}" if index else "up", member) for index, member in enumerate(group.up))
        yield "down", group.down


def _unsuitable(granularity: str, group: AttentionGroup | FeedForwardGroup) -> UserError:
    grouped = isinstance(group, AttentionGroup) and granularity == "head"
    why = "its heads share key/value heads" if grouped else f"it is made for {_MADE_FOR[granularity]}"
    return UserError(f"granularity {granularity!r} does not suit {group.name}: {why}. Choose one of: {GRANULARITIES}.")


_MADE_FOR = {"head": "attention", "unit": "feed-forward layers"}
