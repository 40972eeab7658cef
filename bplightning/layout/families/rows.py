"""A row of the family table: where the layers of a family are and what they call their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionNames:
    """The names of the parts of one attention sub-layer, relative to the layer.

    Attributes:
        module: The module that computes attention from query, key and value.
        query: Query projection; with `fused`, the one projection that holds all three.
        key: Key projection.
        value: Value projection.
        output: Output projection.
        kind: ``"self"`` or ``"cross"``.
        fused: Whether query, key and value are rows of one projection, in this order.
        transposed: Whether weights are stored as ``(in, out)``, as `Conv1D` does.
        position_key: Projects relative positions to keys, where they have their own projection; or `None`.
        position_query: Projects relative positions to queries, or `None`.
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
    """The names of the parts of one feed-forward sub-layer, relative to the layer.

    Attributes:
        up: The up projection; for a gated layer the one with the activation, then the other. Names that the layer does
            not have are skipped, since a family may have both kinds. With `experts`, the one parameter that holds both,
            stacked; with `fused`, the one projection that holds both, in this order.
        down: The down projection; with `experts`, the parameter.
        activation: The activation, a module or a function.
        experts: The module that holds experts stacked in 3-D parameters, or `None`.
        router: With `experts`, the module that sends each token to a few of them.
        part: Suffix of the sub-layer's name, where a layer has several, for example ``"shared"``.
        fused: Whether both up projections of a gated layer are rows of one projection.
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
class ConfigWidths:
    """The configuration fields that give a stack its widths, the same in all of its layers.

    They are all that a checkpoint can say which others read. Stacks that name the same field share its value.

    Attributes:
        units: Units of a feed-forward layer.
        heads: Query heads; `None` where more or fewer heads would change the head size, or the family fixes the number.
        kv_heads: Key/value heads, where queries may be grouped.
        head_size: Size of a head, where it may be given; `None` where `heads` does not change it.
        layers: Number of layers; `None` where no layer can be left out. A layer can be where the residual stream passes
            it unchanged: in pre-norm stacks an empty one, and where `AttentionNames.adds` is given a skipped one.
    """

    units: str | None = None
    heads: str | None = None
    kv_heads: str | None = None
    head_size: str | None = None
    layers: str | None = None


@dataclass(frozen=True)
class Stack:
    """One stack of layers with the same names.

    Attributes:
        layers: Name of the `ModuleList` relative to the base model; a ``*`` in it matches all modules of a
            `ModuleList`, whose layers follow each other.
        attention: The attentions of a layer.
        feed_forward: The feed-forward sub-layer of a layer.
        name: ``"encoder"`` or ``"decoder"``.
        heads: Configuration field with the number of attention heads of this stack, where the stacks differ; by default
            the family's.
        also: Feed-forward sub-layers that a layer may have instead of `feed_forward`, or as well; names that it does
            not have are skipped.
        config: The configuration fields with its widths.
    """

    layers: str
    attention: tuple[AttentionNames, ...]
    feed_forward: FeedForwardNames
    name: str = "encoder"
    heads: str | None = None
    also: tuple[FeedForwardNames, ...] = ()
    config: ConfigWidths = ConfigWidths()


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        stacks: The stacks of layers that can be pruned.
        residual: Patterns of parameter names, relative to the base model (those of a head in full), to the axis or axes
            that the residual stream runs along. The members of the groups need no entry: their axes are known.
        unpooled: More such patterns, for parameters that read the stream only where the model has no pooler.
        heads: Configuration fields that may hold the number of attention heads; the first found is used.
        hidden_size: Configuration fields that may hold the width of the residual stream; the first found is used.
        resized: Corrects what slicing the projections leaves wrong. It is called with the model, each group of its
            layout before slicing, and the indices of the heads or units that stay, both when a model is compacted and
            when a compact one is loaded. `None` where slicing is enough.
    """

    stacks: tuple[Stack, ...]
    residual: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    unpooled: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    heads: tuple[str, ...] = ("num_attention_heads", "n_heads", "num_heads", "n_head")
    hidden_size: tuple[str, ...] = ("hidden_size", "dim", "d_model", "n_embd")
    resized: Callable[[nn.Module, Any, Tensor], None] | None = None
