"""Building the masks that prune a group at a granularity.

Legend: `O` out features, `I` in features, `R`, `C` grid rows and columns, `H` heads, `F` units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Cover, Mask

GRANULARITIES = (
    "element, row, column, a block such as 32x32 (rows x columns), N:M such as 2:4, head (attention), unit "
    "(feed-forward)"
)

FALLBACKS = {
    "decoder_attention": "attention",
    "cross_attention": "attention",
    "decoder_feed_forward": "feed_forward",
}
"""A role of a decoder to the role whose setting it uses when it has none of its own."""

ROLES = ("attention", "feed_forward", *FALLBACKS)
"""All roles."""


def check_roles(name: str, by_role: Mapping[str, object]) -> None:
    """Refuse a setting by role with a key that is no role.

    Args:
        name: Name of the setting, for the message.
        by_role: Role to value.

    Raises:
        UserError: A key is no role.
    """
    for role in by_role:
        if role not in ROLES:
            raise UserError(f"{name} is given for {role!r}, which is no role: name one of {', '.join(ROLES)}.")


def check_role_weights(role_weights: Mapping[str, float]) -> None:
    """Refuse weights of roles in a penalty that have a key which is no role, or are negative.

    Args:
        role_weights: Role to factor.

    Raises:
        UserError: A key is no role, or a factor is below 0.
    """
    check_roles("role_weights", role_weights)
    for role, value in role_weights.items():
        if not value >= 0:
            raise UserError(f"role_weights has {value:g} for {role}; it must be 0 (no penalty) or more.")


def role_weight(role_weights: Mapping[str, float], role: str) -> float:
    """Factor of a role's share of a penalty: a decoder's as the encoder's, 1 where none is given.

    Args:
        role_weights: Role to factor, as `check_role_weights` allows it.
        role: The role.

    >>> role_weight({"attention": 0.5}, "cross_attention"), role_weight({"attention": 0.5}, "feed_forward")
    (0.5, 1.0)
    """
    return role_weights.get(role, role_weights.get(FALLBACKS.get(role, role), 1.0))


def granularity_by_role(chosen: Mapping[str, str] | None, *, default: Mapping[str, str]) -> dict[str, str]:
    """The granularity of every role: the chosen one, else that of the matching encoder role, else the default.

    Args:
        chosen: Role to granularity, as the user gives it.
        default: The granularities of ``attention`` and ``feed_forward`` that the user does not give.

    Raises:
        UserError: A key is no role, or a value is no granularity.

    >>> found = granularity_by_role({"attention": "head"}, default={"attention": "32x32", "feed_forward": "unit"})
    >>> found["cross_attention"], found["decoder_feed_forward"]
    ('head', 'unit')
    """
    chosen = dict(chosen or {})
    check_roles("granularity", chosen)
    found = {**default, **chosen}
    return {role: check_granularity(found.get(role) or found[FALLBACKS[role]]) for role in ROLES}


def make_masks(
    layout: PrunableLayout, granularity: Mapping[str, str], *, scores: bool = True, patterns: bool = True
) -> Iterator[tuple[str, Mask]]:
    """The masks, with their names, of all groups of a layout.

    Args:
        layout: What can be pruned.
        granularity: Role to granularity, for every role of the layout.
        scores: Whether the masks have learned scores.
        patterns: Whether the strategy can keep N of M neighbours.

    Raises:
        UserError: Granularities do not suit their groups; one message lists all of them.
    """
    masks: list[tuple[str, Mask]] = []
    refused = []
    for group in layout.groups:
        try:
            masks += masks_of(layout.model, group, granularity[group.role], scores=scores, patterns=patterns)
        except UserError as error:
            refused.append(str(error))
    if len(refused) == 1:
        raise UserError(refused[0])
    if refused:
        raise UserError(
            f"{len(refused)} of {len(layout.groups)} groups cannot be masked at this granularity. " + " ".join(refused)
        )
    yield from masks


def masks_of(
    model: nn.Module,
    group: AttentionGroup | FeedForwardGroup,
    granularity: str,
    *,
    scores: bool = True,
    patterns: bool = True,
) -> Iterator[tuple[str, Mask]]:
    """The masks, with their names, that prune `group` at `granularity`.

    Args:
        model: The model the group belongs to.
        group: What to mask.
        granularity: ``element``, ``row``, ``column``, ``RxC`` (rows x columns of a tile), ``N:M`` (single weights, of
            each `M` neighbours in a row at most `N` stay), ``head`` (one entry a head, or a key/value head with its
            queries, shared by all projections of the group) or ``unit`` (one entry shared by the up and down
            projections).
        scores: Whether the masks have learned scores.
        patterns: Whether the strategy can keep N of M neighbours.

    Raises:
        UserError: The granularity is unknown, does not suit the group, or does not divide a weight.
    """

    def tied(covers: tuple[Cover, ...], entries: int) -> Mask:
        total = sum(cover.member.weight(model).numel() for cover in covers)
        return Mask(group.role, covers, (entries, 1), total, scores)

    if granularity == "head":
        if not isinstance(group, AttentionGroup):
            raise _unsuitable(granularity, group)
        covers = tuple(Cover(member) for member in group.members[:-1])
        if group.kv_heads:
            yield group.name, tied((*covers, Cover(group.output, transposed=True)), group.kv_heads)
    elif granularity == "unit":
        if not isinstance(group, FeedForwardGroup):
            raise _unsuitable(granularity, group)
        covers = tuple(Cover(member) for member in group.up)
        if group.width:
            yield group.name, tied((*covers, Cover(group.down, transposed=True)), group.width)
    else:
        pattern = _pattern(granularity)
        if pattern and not patterns:
            raise UserError(
                f"granularity {granularity!r} keeps {pattern[0]} of each {pattern[1]} neighbours, which a strategy "
                "with a score threshold cannot guarantee: use magnitude or movement, or another granularity."
            )
        undivided = []
        found = []
        for label, member in _labelled(group):
            out_features, in_features = member.weight(model).shape
            tile_rows, tile_columns = (1, pattern[1]) if pattern else _tile(granularity, out_features, in_features)
            if out_features % tile_rows or in_features % tile_columns:
                undivided.append(f"{member.name} of shape {out_features} x {in_features}")
                continue
            grid = (out_features, in_features)
            if not pattern:
                grid = out_features // tile_rows, in_features // tile_columns
            total = out_features * in_features
            if total == 0:  # a sub-layer of a compact model with nothing left
                continue
            mask = Mask(group.role, (Cover(member),), grid, total, scores, pattern)
            found.append((f"{group.name}.{label}", mask))
        if undivided:
            rule = (
                f"{pattern[1]} must divide the second number"
                if pattern
                else "its rows must divide the first number and its columns the second"
            )
            raise UserError(
                f"{'pattern' if pattern else 'block'} {granularity} does not divide {', '.join(undivided)}: {rule}. "
                "Choose one that does."
            )
        yield from found


def check_granularity(granularity: str) -> str:
    """Return `granularity` if it is a known one, for any group.

    Raises:
        UserError: It is not known.
    """
    if granularity not in ("head", "unit") and _pattern(granularity) is None:
        _tile(granularity, 1, 1)
    return granularity


def _pattern(granularity: str) -> tuple[int, int] | None:
    """`N` and `M` of an N:M granularity, else `None`."""
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", granularity)
    if found is None:
        return None
    kept, of = int(found[1]), int(found[2])
    if kept >= of:
        raise UserError(f"granularity {granularity!r} keeps everything: N must be less than M, as in 2:4.")
    return kept, of


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
        for label in ("query", "key", "position_query", "position_key", "value", "output"):
            member = getattr(group, label)
            if member is not None:
                yield label, member
    else:
        yield from ((f"up{index}" if index else "up", member) for index, member in enumerate(group.up))
        yield "down", group.down


def _unsuitable(granularity: str, group: AttentionGroup | FeedForwardGroup) -> UserError:
    made_for = {"head": "attention", "unit": "feed-forward layers"}[granularity]
    return UserError(
        f"granularity {granularity!r} does not suit {group.name}: it is made for {made_for}. Choose one of: "
        f"{GRANULARITIES}."
    )
