"""The prunable layout of a model: its attention and feed-forward groups, read from one table row per family."""

from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member, ParameterAxis
from bplightning.layout.instance_mixin import Mixin, mix_in, take_out
from bplightning.layout.plain_weights import plain_weights
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink, kind_of, size_of

__all__ = [
    "AttentionGroup",
    "FeedForwardGroup",
    "Group",
    "Member",
    "Mixin",
    "ParameterAxis",
    "PrunableLayout",
    "can_shrink",
    "kind_of",
    "mix_in",
    "plain_weights",
    "size_of",
    "take_out",
]
