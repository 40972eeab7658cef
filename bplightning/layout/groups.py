"""Members, which are named slices of parameters, and groups of members that must shrink together.

Legend: `O` out features, `I` in features, `H` heads, `K` key/value heads, `D` head size, `F` feed-forward units.

A member is always seen as a matrix ``weight_OI`` whose rows are outputs, however the model stores it: a `Linear`, a
part of a fused qkv `Linear` or `Conv1D`, one expert of a stacked expert tensor, or a vector (of a norm, a bias) as one
column.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bplightning.errors import UserError


@dataclass(frozen=True)
class Member:
    """A named slice of a parameter, seen as a matrix ``weight_OI``.

    Attributes:
        module: Dotted name of the module that owns the parameter.
        parameter: The parameter's name in that module.
        bias: Name of the bias that belongs to the rows, or `None`.
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
        if parameter.ndim == 1:
            parameter = parameter[:, None]
        if self.transposed:
            parameter = parameter.T
        return parameter if self.rows is None else parameter[self.rows[0] : self.rows[1]]

    def weight(self, model: nn.Module) -> Tensor:
        """The unmasked ``weight_OI`` of this member in `model`.

        Raises:
            UserError: Its layer holds no such parameter.
        """
        module = model.get_submodule(self.module)
        parameter = module._parameters.get(self.parameter)
        if parameter is None:
            raise UserError(
                f"{self.name} is no parameter of its layer, a {type(module).__name__}, which holds its weight another "
                "way: give a model whose layers hold ordinary weights."
            )
        return self.view(parameter)

    def grad(self, model: nn.Module) -> Tensor | None:
        """The gradient of this member's ``weight_OI``, a view, or `None` where there is none."""
        parameter = model.get_submodule(self.module)._parameters[self.parameter]
        assert parameter is not None
        return None if parameter.grad is None else self.view(parameter.grad)

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
        role: The key by which penalty, granularity and density are set.
        layer: Index of the layer in its stack.
        module: Dotted name of the module that mixes the values (it holds query, key and value).
        query: Its weight is ``(H * D, I)``.
        key: Its weight is ``(K * D, I)``.
        value: Its weight is ``(K * D, I)``.
        output: Its weight is ``(O, H * D)``.
        heads: Query heads, ``H``.
        kv_heads: Key/value heads, ``K``; equal to `heads` unless queries are grouped.
        head_size: Rows of one head, ``D``.
        position_key: Projects relative positions to keys, ``(H * D, I)``; `None` where they have no own projection.
        position_query: Projects relative positions to queries, ``(H * D, I)``, or `None`.
        position_bias: A table of relative position biases ``(buckets, columns)`` these heads look up, possibly another
            layer's (T5).
        position_columns: The column of `position_bias` that each head looks up; empty where there is none.
        adds: Dotted name of the module that adds the output to the residual stream and normalizes the sum, called with
            both; `None` where there is no such module.
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
    position_key: Member | None = None
    position_query: Member | None = None
    position_bias: Member | None = None
    position_columns: tuple[int, ...] = ()
    adds: str | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """Query and key, those of relative positions where they exist, value, output."""
        readers = self.query, self.key, self.position_query, self.position_key, self.value
        return *(member for member in readers if member is not None), self.output


@dataclass(frozen=True)
class FeedForwardGroup:
    """One feed-forward sub-layer: unit ``f`` is row ``f`` of each up projection, column ``f`` of the down projection.

    Attributes:
        name: Stable name by stack and layer, for example ``encoder.3.feed_forward``, with ``.expert.5`` for an expert.
        role: The key by which penalty, granularity and density are set.
        layer: Index of the layer in its stack.
        up: One projection ``(F, I)``, or two for a gated layer: the one that goes through the activation first.
        down: Its weight is ``(O, F)``.
        width: Units, ``F``.
        activation: Dotted name of the activation, a module or a function held by a module.
        router: For an expert, the dotted name of the module that sends tokens to it; else `None`.
        adds: Dotted name of the module that adds the output to the residual stream and normalizes the sum, called with
            both; `None` where there is no such module.
    """

    name: str
    role: str
    layer: int
    up: tuple[Member, ...]
    down: Member
    width: int
    activation: str
    router: str | None = None
    adds: str | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """The up projections, then the down projection."""
        return *self.up, self.down


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of one parameter.

    Attributes:
        parameter: Full dotted name of the parameter.
        axis: Index of the axis.
        expert: Index into the first axis of a stacked expert tensor; `axis` then counts the remaining axes.
    """

    parameter: str
    axis: int
    expert: int | None = None
