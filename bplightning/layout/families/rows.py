"""What a row of the family table says: where a family's layers are and what they call their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionNames:
    """What a layer calls the parts of one attention, each name relative to the layer.

    Attributes:
        module: The module that computes attention from query, key and value.
        query: Query projection; with `fused`, the one projection that holds all three.
        key: Key projection.
        value: Value projection.
        output: Output projection.
        kind: ``"self"`` or ``"cross"``.
        fused: Whether query, key and value are rows of one projection, in this order.
        transposed: Whether weights are stored as ``(in, out)``, as `Conv1D` does.
        position_key: Makes the keys of relative positions, where a projection of its own does; or `None`.
        position_query: Makes the queries of relative positions, likewise.
        position_bias: Relative position bias table, its name relative to the base model, ``{layer}`` in it the layer's
            index; or `None`. Its columns are the heads.
        adds: The module that adds the sub-layer's output to the residual stream and normalizes the sum, called with
            both; or `None`.
    """

    module: str
    query: str
    key: str
    value: str
    output: str
    kind: str = "self"
    fused: bool = False
    transposed: bool = False
    position_key: str | None = None
    position_query: str | None = None
    position_bias: str | None = None
    adds: str | None = None


@dataclass(frozen=True)
class FeedForwardNames:
    """What a layer calls the parts of its feed-forward sub-layer, each name relative to the layer.

    Attributes:
        up: The up projection; for a gated layer the one that goes through the activation, then the other. A name that
            the layer does not have is passed over, where a family has both kinds. With `experts`, the one parameter
            that holds both, stacked; with `fused`, the one projection that holds both, in this order.
        down: The down projection; with `experts`, the parameter.
        activation: The activation, a module or a function.
        experts: The module that holds experts stacked in 3-D parameters, or `None`.
        router: With `experts`, the module that sends each token to a few of them.
        part: What the sub-layer's name ends with, where a layer has several, for example ``"shared"``.
        fused: Whether both up projections of a gated layer are rows of one.
        transposed: Whether weights are stored as ``(in, out)``, as `Conv1D` does.
        adds: The module that adds the sub-layer's output to the residual stream and normalizes the sum, called with
            both; or `None`.
    """

    up: tuple[str, ...]
    down: str
    activation: str
    experts: str | None = None
    router: str | None = None
    part: str | None = None
    fused: bool = False
    transposed: bool = False
    adds: str | None = None


@dataclass(frozen=True)
class Stack:
    """One stack of equal layers.

    Attributes:
        layers: The `ModuleList`, its name relative to the base model; a ``*`` in it stands for all modules of a
            `ModuleList`, the layers of which follow each other.
        attention: The attentions of a layer.
        feed_forward: The feed-forward sub-layer of a layer.
        name: ``"encoder"`` or ``"decoder"``.
        heads: Configuration field that holds the number of attention heads of this stack, where the stacks differ; by
            default the family's.
        beside: What a layer may have for feed-forward sub-layers in place of `feed_forward`, or as well; whatever it
            has not is passed over.
    """

    layers: str
    attention: tuple[AttentionNames, ...]
    feed_forward: FeedForwardNames
    name: str = "encoder"
    heads: str | None = None
    beside: tuple[FeedForwardNames, ...] = ()


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        stacks: The stacks of layers that can be pruned.
        residual: Patterns of parameter names, relative to the base model (a head's as they are), to the axis that the
            residual stream runs along, or to several; beside the members of the groups, whose axes are known.
        unpooled: The same of what reads the stream itself where the model has no pooler, and else what that gives.
        heads: Configuration fields that may hold the number of attention heads, the first found counts.
        hidden_size: Configuration fields that may hold the width of the residual stream, likewise.
        resized: What slicing the projections leaves wrong, put right: called with the model, each group of its layout
            as it was before, and the indices of the heads or units that stay, both when a model is compacted and when
            a compact one is loaded. `None` where slicing is enough.
    """

    stacks: tuple[Stack, ...]
    residual: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    unpooled: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    heads: tuple[str, ...] = ("num_attention_heads", "n_heads", "num_heads", "n_head")
    hidden_size: tuple[str, ...] = ("hidden_size", "dim", "d_model", "n_embd")
    resized: Callable[[nn.Module, Any, Tensor], None] | None = None
