"""One graph for all steps of an encoder-decoder model's decoder, which is what readers in a browser load.

Legend: `B` batch, `P` tokens in a cache, `S` tokens of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bplightning.exporting.graphs import BATCH, Call

MERGED = "decoder_model_merged"
"""The usual name of its file."""

SWITCH = "use_cache_branch"
"""The usual name of its input that says whether the cache holds tokens: a bool, ``(1,)``."""


def merge_decoders(first: Any, later: Any) -> Any:
    """Join the decoder's first step and its later steps into one graph, which shares their weights.

    The graph takes all inputs of both, and `SWITCH`. For the first step the cache's values are not read, so tensors
    without tokens will do; for later steps the encoder's states are not read. Keys and values of the encoder's tokens
    are returned as they were given.

    Args:
        first: `onnx_ir.Model` of the first step, without a cache; it is used up.
        later: `onnx_ir.Model` of the later steps; it is used up.

    Returns:
        The `onnx_ir.Model` of both.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    inputs = {value.name: _declared(value) for model in (later, first) for value in model.graph.inputs}
    names = [value.name for value in first.graph.outputs]
    shapes = {value.name: value for model in (first, later) for value in model.graph.outputs}
    outputs = [_declared(shapes[name]) for name in names]
    switch = ir.Value(name=SWITCH, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    branches = {
        "then_branch": _branch(later.graph, inputs, names, prefix="later"),
        "else_branch": _branch(first.graph, inputs, names, prefix="first"),
    }
    choice = ir.Node(
        "", "If", [switch], [ir.AttrGraph(name, graph) for name, graph in branches.items()], outputs=outputs
    )
    graph = ir.Graph(
        [*inputs.values(), switch], outputs, nodes=[choice], opset_imports=dict(first.graph.opset_imports), name=MERGED
    )
    model = ir.Model(
        graph,
        ir_version=first.ir_version,
        producer_name=first.producer_name,
        producer_version=first.producer_version,
    )
    for tidy in (
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(size_limit=2**40),  # the weights, and not only small tensors
        common.NameFixPass(),
    ):
        tidy(model)
    return model


def _branch(graph: Any, inputs: Mapping[str, Any], names: list[str], *, prefix: str) -> Any:
    """A graph as a branch: it reads the inputs around it, and returns all outputs, a cache that it only reads too."""
    import onnx_ir as ir

    for value in graph.inputs:
        ir.convenience.replace_all_uses_with(value, inputs[value.name], replace_graph_outputs=True)
    made = {value.name: value for value in graph.outputs}
    nodes, weights = list(graph), list(graph.initializers.values())
    graph.outputs.clear()
    graph.remove(nodes)
    graph.initializers.clear()
    for name in names:
        source = made.get(name)
        if source is None or source in inputs.values():  # a branch returns values of its own
            given = inputs[name.replace("present", "past_key_values", 1)]
            nodes.append(ir.node("Identity", [given]))
            made[name] = nodes[-1].outputs[0]
    returned = [made[name] for name in names]
    for value in [*(output for node in nodes for output in node.outputs), *weights]:
        if value.name is not None:
            value.name = f"{prefix}.{value.name}"
    return ir.Graph([], returned, nodes=nodes, initializers=weights, name=prefix)


def _declared(value: Any) -> Any:
    """A new value of the same name, type and shape."""
    import onnx_ir as ir

    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def merged_calls(session: Any) -> dict[str, Call]:
    """The functions that compute the decoder's first step and its later ones with a merged graph.

    Args:
        session: `Session` of the merged graph.
    """

    def call(inputs: dict[str, Any], *, cached: bool) -> dict[str, Any]:
        rows = len(inputs["input_ids"])
        absent = {
            each.name: torch.zeros([rows if dim == BATCH else dim if isinstance(dim, int) else 0 for dim in each.shape])
            for each in session.inputs
        }
        return session(inputs, otherwise=absent | {SWITCH: torch.tensor([cached])})

    return {
        "decoder_model": lambda inputs: call(inputs, cached=False),
        "decoder_with_past_model": lambda inputs: call(inputs, cached=True),
    }


def merge_files(first: Path, later: Path) -> Any:
    """Join the files of both kinds of step; see `merge_decoders`."""
    import onnx_ir as ir

    return merge_decoders(ir.load(first), ir.load(later))
