"""What of a model can be pruned, and how it is tied together.

Legend: `O` out features, `I` in features, `H` heads, `K` key/value heads, `D` head size, `F` feed-forward units.

A member is a named slice of a parameter, always seen as a matrix ``weight_OI`` whose rows are outputs, whatever way the
model stores it: a `Linear`, a part of a fused qkv `Linear` or `Conv1D`, one expert of a stacked expert tensor. Groups
tie the members that must shrink together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.families import FAMILIES, AttentionNames, Family, FeedForwardNames, Stack

ATTENTION_ROLES = {("encoder", "self"): "attention", ("decoder", "self"): "decoder_attention"}
"""Role of a self-attention by its stack; cross-attention has the role ``cross_attention``."""

FEED_FORWARD_ROLES = {"encoder": "feed_forward", "decoder": "decoder_feed_forward"}
"""Role of a feed-forward layer by its stack."""


@dataclass(frozen=True)
class Member:
    """A named slice of a parameter, seen as a matrix ``weight_OI``.

    Attributes:
        module: Dotted name of the module that owns the parameter.
        parameter: The parameter's name in that module.
        bias: Name of the bias that goes with the rows, or `None`.
        transposed: Whether the parameter is stored as ``(I, O)``, as `Conv1D` does.
        expert: Index into the first axis of a stacked expert tensor, or `None`.
        rows: First and last + 1 output row this member covers, or `None` for all of them.
    """

    module: str
    parameter: str = "weight"
    bias: str | None = "bias"
    transposed: bool = False
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The parameter's full name, for messages and for counting shared parameters once."""
        return f"{self.module}.{self.parameter}"

    def view(self, parameter: Tensor) -> Tensor:
        """This member's ``weight_OI`` as a view of the whole parameter; writing to it writes the parameter."""
        if self.expert is not None:
            parameter = parameter[self.expert]
        if self.transposed:
            parameter = parameter.T
        return parameter if self.rows is None else parameter[self.rows[0] : self.rows[1]]

    def weight(self, model: nn.Module) -> Tensor:
        """The unmasked ``weight_OI`` of this member in `model`."""
        parameter = model.get_submodule(self.module)._parameters[self.parameter]
        assert parameter is not None
        return self.view(parameter)

    def bias_of(self, model: nn.Module) -> Tensor | None:
        """The bias of this member's rows ``(O,)``, a view, or `None` where it has none."""
        bias: Tensor | None = None if self.bias is None else model.get_submodule(self.module)._parameters.get(self.bias)
        if bias is None:
            return None
        if self.expert is not None:
            bias = bias[self.expert]
        return bias if self.rows is None else bias[self.rows[0] : self.rows[1]]


@dataclass(frozen=True)
class AttentionGroup:
    """One attention sub-layer: four projections that share heads.

    Head ``h`` is rows ``h * D`` to ``(h + 1) * D`` of query, key and value and the same columns of output; with grouped
    queries, key/value head ``k`` serves the query heads ``k * H / K`` to ``(k + 1) * H / K``.

    Attributes:
        name: Stable name by stack, layer and kind, for example ``encoder.3.self``; never a module path.
        role: What penalty, granularity and density are chosen by.
        layer: Index of the layer in its stack.
        module: Dotted name of the module that mixes the values (it holds query, key and value).
        query: Its weight is ``(H * D, I)``.
        key: Its weight is ``(K * D, I)``.
        value: Its weight is ``(K * D, I)``.
        output: Its weight is ``(O, H * D)``.
        heads: Query heads, ``H``.
        kv_heads: Key/value heads, ``K``; equal to `heads` unless queries are grouped.
        head_size: Rows of one head, ``D``.
        position_bias: A relative position bias ``(buckets, H)`` these heads look up, possibly another layer's (T5).
    """

    name: str
    role: str
    layer: int
    module: str
    query: Member
    key: Member
    value: Member
    output: Member
    heads: int
    kv_heads: int
    head_size: int
    position_bias: Member | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """Query, key, value, output."""
        return self.query, self.key, self.value, self.output


@dataclass(frozen=True)
class FeedForwardGroup:
    """One feed-forward sub-layer: unit ``f`` is row ``f`` of each up projection, column ``f`` of the down projection.

    Attributes:
        name: Stable name by stack and layer, for example ``encoder.3.feed_forward``, with ``.expert.5`` for an expert.
        role: What penalty, granularity and density are chosen by.
        layer: Index of the layer in its stack.
        up: One projection ``(F, I)``, or two for a gated layer: the one that goes through the activation first.
        down: Its weight is ``(O, F)``.
        width: Units, ``F``.
        activation: Dotted name of the activation, a module or a function held by a module.
    """

    name: str
    role: str
    layer: int
    up: tuple[Member, ...]
    down: Member
    width: int
    activation: str

    @property
    def members(self) -> tuple[Member, ...]:
        """The up projections, then the down projection."""
        return *self.up, self.down


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of one parameter.

    Attributes:
        parameter: Full dotted name of the parameter.
        axis: The axis meant.
        expert: Index into the first axis of a stacked expert tensor; `axis` then counts what is left.
    """

    parameter: str
    axis: int
    expert: int | None = None


@dataclass(frozen=True)
class PrunableLayout:
    """What of a model can be pruned.

    Attributes:
        model: The model it describes.
        family: The row of the table it was read by.
        attention: Attention sub-layers, in order of stacks and layers.
        feed_forward: Feed-forward sub-layers, likewise.
        residual: Every parameter axis that the residual stream runs along: they shrink, or are permuted, all together.
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
            family: The table's row to read it by; by default the row of ``model.config.model_type``.

        Raises:
            UserError: The architecture is not in the table.
        """
        family = family or family_of(model)
        base = getattr(model, "base_model", model)
        prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
        attention: list[AttentionGroup] = []
        feed_forward: list[FeedForwardGroup] = []
        for stack in family.stacks:
            layers = model.get_submodule(prefix + stack.layers)
            assert isinstance(layers, nn.ModuleList)
            for index in range(len(layers)):
                where = f"{prefix}{stack.layers}.{index}."
                for names in stack.attention:
                    attention.append(_attention_group(model, family, stack, names, index, where, prefix))
                feed_forward.extend(_feed_forward_groups(model, stack, stack.feed_forward, index, where))
        residual = tuple(_residual_axes(model, family, prefix, attention, feed_forward))
        return cls(model, family, tuple(attention), tuple(feed_forward), residual)

    @property
    def groups(self) -> tuple[AttentionGroup | FeedForwardGroup, ...]:
        """Every group: attention first."""
        return *self.attention, *self.feed_forward

    @property
    def members(self) -> Iterator[Member]:
        """Every member of every group."""
        return (member for group in self.groups for member in group.members)

    def weights(self) -> int:
        """Number of weights in all members together, biases left out: the papers' "linear weights"."""
        return sum(member.weight(self.model).numel() for member in self.members)


def family_of(model: nn.Module) -> Family:
    """The row of the family table that describes `model`.

    Raises:
        UserError: The architecture is not in the table.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in FAMILIES:
        raise UserError(
            f"model architecture {model_type or type(model).__name__!r} is not known to bplightning, which prunes: "
            f"{', '.join(sorted(FAMILIES))}. To add one, write its row in bplightning/families/ (where its layers "
            "are and what they call their projections; CONTRIBUTING.md, 'Add a model family')."
        )
    return FAMILIES[model_type]


def _attention_group(
    model: nn.Module, family: Family, stack: Stack, names: AttentionNames, layer: int, where: str, prefix: str
) -> AttentionGroup:
    config = model.config
    heads_config = _first(config, family.heads)
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    size = size or _first(config, family.hidden_size) // heads_config
    kv_config = getattr(config, "num_key_value_heads", None) or heads_config

    def member(name: str, rows: tuple[int, int] | None = None) -> Member:
        return Member(where + name, transposed=names.transposed, rows=rows)

    if names.fused:
        (fused,) = {names.query, names.key, names.value}
        width = heads_config * size
        kv_width = kv_config * size
        query = member(fused, (0, width))
        key = member(fused, (width, width + kv_width))
        value = member(fused, (width + kv_width, width + 2 * kv_width))
    else:
        query, key, value = member(names.query), member(names.key), member(names.value)
    role = ATTENTION_ROLES.get((stack.name, names.kind), "cross_attention")
    position_bias = None if names.position_bias is None else Member(prefix + names.position_bias, bias=None)
    return AttentionGroup(
        name=f"{stack.name}.{layer}.{names.kind}",
        role=role,
        layer=layer,
        module=(where + names.module).rstrip("."),
        query=query,
        key=key,
        value=value,
        output=member(names.output),
        heads=query.weight(model).shape[0] // size,
        kv_heads=key.weight(model).shape[0] // size,
        head_size=size,
        position_bias=position_bias,
    )


def _feed_forward_groups(
    model: nn.Module, stack: Stack, names: FeedForwardNames, layer: int, where: str
) -> Iterator[FeedForwardGroup]:
    name, role = f"{stack.name}.{layer}.feed_forward", FEED_FORWARD_ROLES[stack.name]
    activation = where + names.activation
    if names.experts is not None:
        owner = where + names.experts
        experts, doubled, _ = model.get_submodule(owner)._parameters[names.up[0]].shape  # type: ignore[union-attr]
        width = doubled // 2
        for expert in range(experts):
            halves = tuple(
                Member(owner, names.up[0], bias=None, expert=expert, rows=rows)
                for rows in ((0, width), (width, 2 * width))
            )
            down = Member(owner, names.down, bias=None, expert=expert)
            yield FeedForwardGroup(f"{name}.expert.{expert}", role, layer, halves, down, width, activation)
        return
    up = tuple(Member(where + each, transposed=names.transposed) for each in names.up)
    down = Member(where + names.down, transposed=names.transposed)
    yield FeedForwardGroup(name, role, layer, up, down, up[0].weight(model).shape[0], activation)


def _residual_axes(
    model: nn.Module,
    family: Family,
    prefix: str,
    attention: list[AttentionGroup],
    feed_forward: list[FeedForwardGroup],
) -> Iterator[ParameterAxis]:
    """Readers along their inputs, writers along their outputs and biases, and what the family's row lists."""
    seen: set[ParameterAxis] = set()
    hidden_size = attention[0].query.weight(model).shape[1]

    def axes() -> Iterator[ParameterAxis]:
        groups: list[AttentionGroup | FeedForwardGroup] = [*attention, *feed_forward]
        for group in groups:
            *readers, writer = group.members
            for member in readers:
                yield ParameterAxis(member.name, 0 if member.transposed else 1, member.expert)
            yield ParameterAxis(writer.name, 1 if writer.transposed else 0, writer.expert)
            if writer.bias_of(model) is not None:
                yield ParameterAxis(f"{writer.module}.{writer.bias}", 0)
        for name, parameter in model.named_parameters():
            inner = name.removeprefix(prefix)
            for pattern, axis in family.residual.items():
                # Embeddings may be narrower than the stream and projected up to it (ELECTRA).
                if fnmatchcase(inner, pattern) and parameter.shape[axis] == hidden_size:
                    yield ParameterAxis(name, axis)
                    break

    for axis in axes():
        if axis not in seen:
            seen.add(axis)
            yield axis


def _first(config: object, names: tuple[str, ...]) -> int:
    """The first of `names` that the configuration has."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise UserError(f"the model's configuration has none of {', '.join(names)}: one is needed to find the head size.")
