"""The prunable layout of a model, read from its family's row of the table.

Legend: `O` out features, `I` in features, `H` heads, `K` key/value heads, `D` head size, `F` feed-forward units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bplightning.errors import UserError
from bplightning.layout.families import FAMILIES, AttentionNames, Family, FeedForwardNames, Stack
from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member, ParameterAxis
from bplightning.layout.plain_weights import require_plain

ATTENTION_ROLES = {("encoder", "self"): "attention", ("decoder", "self"): "decoder_attention"}
"""Role of a self-attention by its stack; cross-attention has the role ``cross_attention``."""

FEED_FORWARD_ROLES = {"encoder": "feed_forward", "decoder": "decoder_feed_forward"}
"""Role of a feed-forward layer by its stack."""


@dataclass(frozen=True)
class PrunableLayout:
    """The parts of a model that can be pruned.

    Attributes:
        model: The model it describes.
        family: The row of the family table that it was read with.
        attention: Attention sub-layers, in order of stacks and layers.
        feed_forward: Feed-forward sub-layers, in the same order.
        residual: Every parameter axis that the residual stream runs along; these must be sliced or permuted together.
    """

    model: nn.Module
    family: Family
    attention: tuple[AttentionGroup, ...]
    feed_forward: tuple[FeedForwardGroup, ...]
    residual: tuple[ParameterAxis, ...]

    @classmethod
    def of(cls, model: nn.Module, family: Family | None = None) -> PrunableLayout:
        """Read the layout of a transformers model.

        Args:
            model: A transformers model, with or without a head; dense or compact.
            family: The row to read it with; by default the row of ``model.config.model_type``.

        Raises:
            UserError: The architecture is not in the table, or a layer holds its weight another way.
        """
        require_plain(model)
        family = family or family_of(model)
        prefix = base_prefix(model)
        attention: list[AttentionGroup] = []
        feed_forward: list[FeedForwardGroup] = []
        for stack in stacks_of(model, family):
            for index, name in enumerate(_layers(model, prefix + stack.layers)):
                where = f"{name}."
                for names in stack.attention:
                    attention.append(_attention_group(model, family, stack, names, index, where, prefix))
                for sub_layer in (stack.feed_forward, *stack.also):
                    feed_forward.extend(_feed_forward_groups(model, stack, sub_layer, index, where))
        residual = tuple(_residual_axes(model, family, prefix, attention, feed_forward))
        layout = cls(model, family, tuple(attention), tuple(feed_forward), residual)
        for member in layout.members:
            member.weight(model)  # each is there
        return layout

    @property
    def groups(self) -> tuple[AttentionGroup | FeedForwardGroup, ...]:
        """Every group: attention first."""
        return *self.attention, *self.feed_forward

    @property
    def members(self) -> Iterator[Member]:
        """Every member of every group."""
        return (member for group in self.groups for member in group.members)

    def weights(self) -> int:
        """Number of weights in all members together, without biases: the papers' "linear weights"."""
        return sum(member.weight(self.model).numel() for member in self.members)


def base_prefix(model: nn.Module) -> str:
    """What the names of a model's modules begin with where those of its base model begin: ``"bert."``, or nothing."""
    base = getattr(model, "base_model", model)
    return next((f"{name}." for name, module in model.named_modules() if module is base and name), "")


def stacks_of(model: nn.Module, family: Family) -> list[Stack]:
    """The stacks that a model has, which may be one of a family's two: a T5 encoder, a BART decoder."""
    prefix = base_prefix(model)
    here = [stack for stack in family.stacks if _has(model, prefix + stack.layers.partition(".*")[0])]
    return here or list(family.stacks)


def family_of(model: nn.Module) -> Family:
    """The row of the family table that describes `model`.

    Raises:
        UserError: The architecture is not in the table.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in FAMILIES:
        raise UserError(
            f"model architecture {model_type or type(model).__name__!r} is not supported; bplightning prunes: "
            f"{', '.join(sorted(FAMILIES))}. To add one, write its row in bplightning/layout/families/ "
            "(where its layers are and what they call their projections; CONTRIBUTING.md, 'Add a model family')."
        )
    return FAMILIES[model_type]


def _layers(model: nn.Module, name: str) -> Iterator[str]:
    """The names of the layers in the list `name`, or in each list that its ``*`` matches."""
    outer, star, inner = name.partition(".*")
    layers = model.get_submodule(outer)
    assert isinstance(layers, nn.ModuleList)
    for index in range(len(layers)):
        if star:
            yield from _layers(model, f"{outer}.{index}{inner}")
        else:
            yield f"{outer}.{index}"


def _attention_group(
    model: nn.Module, family: Family, stack: Stack, names: AttentionNames, layer: int, where: str, prefix: str
) -> AttentionGroup:
    config = model.config
    heads_config = _first(config, family.heads if stack.heads is None else (stack.heads,))
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    size = size or _first(config, family.hidden_size) // heads_config
    kv_config = getattr(config, "num_key_value_heads", None) or heads_config

    def member(name: str, rows: tuple[int, int] | None = None) -> Member:
        return Member(where + name, transposed=names.transposed, rows=rows)

    def if_there(name: str | None) -> Member | None:
        return member(name) if name is not None and _has(model, where + name) else None

    if names.fused:
        (fused,) = {names.query, names.key, names.value}
        # Not the configuration's count: heads may have been removed.
        kv_heads = member(fused).weight(model).shape[0] // ((heads_config // kv_config + 2) * size)
        width, kv_width = heads_config // kv_config * kv_heads * size, kv_heads * size
        query = member(fused, (0, width))
        key = member(fused, (width, width + kv_width))
        value = member(fused, (width + kv_width, width + 2 * kv_width))
    else:
        query, key, value = member(names.query), member(names.key), member(names.value)
    role = ATTENTION_ROLES.get((stack.name, names.kind), "cross_attention")
    module = (where + names.module).rstrip(".")
    heads = query.weight(model).shape[0] // size
    position_bias = None
    if names.position_bias is not None:
        position_bias = Member(prefix + names.position_bias.format(layer=layer), bias=None)
    columns: tuple[int, ...] = ()
    if position_bias is not None:  # a module that lost heads holds the columns of those that are left
        recorded: Any = getattr(model.get_submodule(module), "position_columns", None)
        columns = tuple(range(heads)) if recorded is None else tuple(recorded.tolist())
    return AttentionGroup(
        name=f"{stack.name}.{layer}.{names.kind}",
        role=role,
        layer=layer,
        module=module,
        query=query,
        key=key,
        value=value,
        output=member(names.output),
        heads=heads,
        kv_heads=key.weight(model).shape[0] // size,
        head_size=size,
        position_key=if_there(names.position_key),
        position_query=if_there(names.position_query),
        position_bias=position_bias,
        position_columns=columns,
        adds=None if names.adds is None else where + names.adds,
    )


def _feed_forward_groups(
    model: nn.Module, stack: Stack, names: FeedForwardNames, layer: int, where: str
) -> Iterator[FeedForwardGroup]:
    name, role = f"{stack.name}.{layer}.feed_forward", FEED_FORWARD_ROLES[stack.name]
    activation = where + names.activation
    if names.part is not None:
        name = f"{name}.{names.part}"
    if names.experts is not None:
        owner = where + names.experts
        if not _has(model, owner):  # a dense layer among others
            return
        router = None if names.router is None else where + names.router
        experts, doubled, _ = model.get_submodule(owner)._parameters[names.up[0]].shape  # type: ignore[union-attr]
        width = doubled // 2
        for expert in range(experts):
            halves = tuple(
                Member(owner, names.up[0], bias=None, expert=expert, rows=rows)
                for rows in ((0, width), (width, 2 * width))
            )
            down = Member(owner, names.down, bias=None, expert=expert)
            expert_name = f"{name}.expert.{expert}"
            yield FeedForwardGroup(expert_name, role, layer, halves, down, width, activation, router=router)
        return
    up = tuple(Member(where + each, transposed=names.transposed) for each in names.up if _has(model, where + each))
    if not up:
        return
    if names.fused:
        (both,) = up
        width = both.weight(model).shape[0] // 2
        up = replace(both, rows=(0, width)), replace(both, rows=(width, 2 * width))
    down = Member(where + names.down, transposed=names.transposed)
    adds = None if names.adds is None else where + names.adds
    yield FeedForwardGroup(name, role, layer, up, down, up[0].weight(model).shape[0], activation, adds=adds)


def _residual_axes(
    model: nn.Module,
    family: Family,
    prefix: str,
    attention: list[AttentionGroup],
    feed_forward: list[FeedForwardGroup],
) -> Iterator[ParameterAxis]:
    """The input axes of readers, the output axes and biases of writers, and the axes listed in the family's row."""
    seen: set[ParameterAxis] = set()
    groups: list[AttentionGroup | FeedForwardGroup] = [*attention, *feed_forward]
    hidden_size = groups[0].members[0].weight(model).shape[1]

    base = model.get_submodule(prefix.rstrip("."))
    patterns = dict(family.residual)
    if getattr(base, "pooler", None) is None:
        patterns |= family.unpooled

    def axes() -> Iterator[ParameterAxis]:
        for group in groups:
            *readers, writer = group.members
            for member in readers:
                yield ParameterAxis(member.name, 0 if member.transposed else 1, member.expert)
            yield ParameterAxis(writer.name, 1 if writer.transposed else 0, writer.expert)
            if writer.bias_of(model) is not None:
                yield ParameterAxis(f"{writer.module}.{writer.bias}", 0)
        for name, parameter in model.named_parameters():
            inner = name.removeprefix(prefix)
            for pattern, axes in patterns.items():
                if fnmatchcase(inner, pattern):
                    for axis in axes if isinstance(axes, tuple) else (axes,):
                        # Embeddings may be narrower than the stream and projected up to it (ELECTRA).
                        if parameter.shape[axis] == hidden_size:
                            yield ParameterAxis(name, axis)
                    break

    for axis in axes():
        if axis not in seen:
            seen.add(axis)
            yield axis


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _first(config: object, names: tuple[str, ...]) -> int:
    """The value of the first of `names` that the configuration has."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise UserError(f"the model's configuration has none of {', '.join(names)}: one is needed to find the head size.")
