"""The compaction plan: which heads, units and dimensions of the residual stream stay, as JSON-able indices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bplightning.compaction.blending import is_blended
from bplightning.compaction.dead_parts import Dead, find_dead
from bplightning.compaction.narrow_stream import surviving
from bplightning.errors import UserError
from bplightning.layout.plain_weights import holds_zeros, with_zeros
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import kind_of, size_of, stream_width
from bplightning.masks.masking import has_masks

PLAN_VERSION = 2
"""Raised by one whenever a field of the plan is renamed, removed, added or changes its meaning. 1 had no ``stream``."""

STREAM = "stream"
"""Name of the plan of the residual stream."""


@dataclass(frozen=True)
class GroupPlan:
    """The parts of one group that stay.

    Attributes:
        name: The group's name, for example ``encoder.3.self``; by stack and layer, never a module path.
        kind: ``"heads"`` (key/value heads where queries are grouped) or ``"units"``; for the stream ``"dimensions"``.
        kept: Indices of the parts that stay, ascending.
        total: Number of parts in the dense model.
        new_bias: Whether the output or down projection gets a new bias, to hold the constant of the removed parts.
    """

    name: str
    kind: str
    kept: tuple[int, ...]
    total: int
    new_bias: bool = False

    def check(self) -> None:
        """Refuse invalid values, since a plan may come from anywhere.

        Raises:
            UserError: The kind is unknown, or it keeps indices that do not exist.
        """
        kind, total, new_bias = self.kind, self.total, self.new_bias
        kinds = ("dimensions",) if self.name == STREAM else ("heads", "units")
        if kind not in kinds or type(total) is not int or total < 0 or type(new_bias) is not bool:
            raise UserError(
                f"the compaction plan's {self.name[:40]!r} must have a kind ({' or '.join(kinds)}), a total (0 or "
                f"more) and new_bias (true or false); it has {str((kind, total, new_bias))[:80]}: make it again."
            )
        ascending = all(type(index) is int for index in self.kept) and list(self.kept) == sorted(set(self.kept))
        if not ascending or not all(0 <= index < total for index in self.kept):
            raise UserError(
                f"the compaction plan's kept {kind} of {self.name[:40]} must be ascending whole numbers from 0 to "
                f"{total - 1}, got {str(list(self.kept)[:8])[:80]}: make the plan again."
            )


@dataclass(frozen=True)
class CompactionPlan:
    """The heads and units that stay, as plain indices.

    Attributes:
        model_type: The architecture it was made for, as in the model's configuration.
        groups: The plan of each group of the layout.
        stream: The dimensions of the residual stream that stay; `None` for all of them.
    """

    model_type: str
    groups: tuple[GroupPlan, ...]
    stream: GroupPlan | None = None

    @classmethod
    def of(cls, model: nn.Module) -> CompactionPlan:
        """Find the dead parts of a model with zeros in its weights, of any origin.

        Args:
            model: A transformers model without masks.

        Raises:
            UserError: The architecture is not supported, or the model still has masks or is not wholly simplified.
        """
        require_finished(model)
        layout = PrunableLayout.of(with_zeros(model) if holds_zeros(model) else model)
        return cls.without(layout, find_dead(layout))

    @classmethod
    def without(cls, layout: PrunableLayout, dead: Mapping[str, Dead]) -> CompactionPlan:
        """The plan that removes everything dead.

        Args:
            layout: Layout of the model.
            dead: The dead parts of each of its groups, by name.
        """
        groups = []
        for group in layout.groups:
            kept = tuple((~dead[group.name].removable).nonzero().flatten().tolist())
            has_bias = group.members[-1].bias_of(layout.model) is not None
            new_bias = not has_bias and dead[group.name].constant(kept) is not None
            groups.append(GroupPlan(group.name, kind_of(group), kept, size_of(group), new_bias))
        return cls(model_type_of(layout.model), tuple(groups), stream_plan(layout))

    @property
    def heads(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, kept indices and original count of every attention group."""
        return [(group.name, group.kept, group.total) for group in self.groups if group.kind == "heads"]

    @property
    def units(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, kept indices and original count of every feed-forward group."""
        return [(group.name, group.kept, group.total) for group in self.groups if group.kind == "units"]

    def to_json(self) -> str:
        """The plan as a JSON document, one group per line."""
        lines = ",\n    ".join(json.dumps(asdict(group)) for group in self.groups)
        return (
            f'{{\n  "version": {PLAN_VERSION},\n  "model_type": {json.dumps(self.model_type)},\n'
            f'  "stream": {json.dumps(self.stream and asdict(self.stream))},\n  "groups": [\n    {lines}\n  ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> CompactionPlan:
        """The plan that `to_json` wrote.

        Raises:
            UserError: It is not such a document.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            version = document["version"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise _unreadable(error) from error
        if type(version) is not int or not 1 <= version <= PLAN_VERSION:
            raise UserError(
                f"the compaction plan has version {repr(version)[:40]}, but this bplightning reads 1 to "
                f"{PLAN_VERSION}: make the plan again."
            )
        try:
            groups = tuple(GroupPlan(**{**group, "kept": tuple(group["kept"])}) for group in document["groups"])
            stream = document["stream"] if version > 1 else None
            if stream is not None:
                stream = GroupPlan(**{**stream, "kept": tuple(stream["kept"])})
            plan = cls(document["model_type"], groups, stream)
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(error) from error
        if unknown := sorted(set(document) - {"version", "model_type", "groups", STREAM if version > 1 else "groups"}):
            raise UserError(
                f"the compaction plan has {unknown[0][:40]!r}, which is no field of a plan: make the plan again."
            )
        if stream is not None and (stream.name != STREAM or not stream.kept):
            raise UserError(f"the compaction plan's {STREAM!r} must keep some of its dimensions: make the plan again.")
        names = [group.name for group in groups]
        if not isinstance(plan.model_type, str) or not all(isinstance(name, str) for name in names):
            raise UserError("the compaction plan must name its model type and groups as text: make the plan again.")
        if len(set(names)) < len(names):
            raise UserError("the compaction plan names a group twice: make the plan again.")
        for group in (*groups, *([] if stream is None else [stream])):
            group.check()
        return plan


def _unreadable(error: Exception) -> UserError:
    reason = " ".join(repr(error).split())[:200]
    return UserError(f"this is not a compaction plan ({reason}): give the text that to_json wrote.")


def stream_plan(layout: PrunableLayout) -> GroupPlan | None:
    """Which dimensions of the residual stream stay; `None` where its norms do not narrow."""
    alive = surviving(layout)
    if alive is None:
        return None
    return GroupPlan(STREAM, "dimensions", tuple(alive.tolist()), stream_width(layout))


def model_type_of(model: Any) -> str:
    """The architecture of a model, as in its configuration."""
    return str(model.config.model_type)


def require_finished(model: nn.Module) -> None:
    """Refuse a model that still has masks or blended layers."""
    if has_masks(model):
        raise UserError(
            "the model still has masks: harden the strategy first, which writes the zeros into the weights."
        )
    if is_blended(model):
        raise UserError(
            "the model is not wholly simplified: its training ended before simplification's schedule did. Train until "
            "the end of the schedule, or use a later checkpoint."
        )
