"""The parts of a model that a latency table depends on: the number of its layers, and their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink, kind_of, size_of


@dataclass(frozen=True)
class RoleShape:
    """The sizes of the layers of one role, which are all equal.

    Attributes:
        kind: ``"heads"`` (key/value heads where queries are grouped) or ``"units"``.
        layers: Number of layers with the role.
        size: Heads or units of each layer.
        weights: Number of weights of one head or unit, in all projections; it differs with head sizes and gates.
    """

    kind: str
    layers: int
    size: int
    weights: int

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.size} {self.kind} with {self.weights} weights each"


@dataclass(frozen=True)
class ModelShape:
    """The shape that a model and a table must have in common.

    Attributes:
        model_type: The architecture.
        model_class: The model's class.
        hidden_size: Width of the residual stream.
        roles: Role to the sizes of its layers.
    """

    model_type: str
    model_class: str
    hidden_size: int
    roles: Mapping[str, RoleShape]

    @classmethod
    def of(cls, layout: PrunableLayout) -> ModelShape:
        """Describe a model.

        Args:
            layout: Its layout, or a part of it.

        Raises:
            UserError: Layers of one role differ, so no single time holds for all of them.
        """
        model: Any = layout.model
        whole = PrunableLayout.of(model, layout.family)  # the layout may be only a part
        groups_of: dict[str, list[Group]] = {}
        for group in can_shrink(whole):
            groups_of.setdefault(group.role, []).append(group)
        roles: dict[str, RoleShape] = {}
        for role, groups in groups_of.items():
            sizes = {size_of(group): group.name for group in groups}
            if len(sizes) > 1:
                (one, first), (other, second), *_ = sizes.items()
                raise UserError(
                    f"layers of {role} differ ({first} has {one} {kind_of(groups[0])}, {second} has {other}), but a "
                    "latency table holds one time per layer: give a dense model whose layers are equal, or use a "
                    "target that needs no table, such as --strategy.target.flops."
                )
            weights = sum(member.weight(model).numel() for member in groups[0].members)
            size = size_of(groups[0])
            roles[role] = RoleShape(kind_of(groups[0]), len(groups), size, weights // size)
        hidden_size = whole.groups[0].members[-1].weight(model).shape[0]
        return cls(model.config.model_type, type(model).__name__, hidden_size, roles)

    def differences(self, other: ModelShape) -> Iterator[str]:
        """The differences to another model, in words."""
        for what in ("model_type", "model_class", "hidden_size"):
            if getattr(self, what) != getattr(other, what):
                yield f"its {what} is {getattr(self, what)!r}, the model's {getattr(other, what)!r}"
        for role in sorted({*self.roles, *other.roles}):
            own, others = (of.roles.get(role, "none") for of in (self, other))
            if own != others:
                yield f"of {role} it has {own}, the model {others}"
