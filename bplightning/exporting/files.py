"""Writing and running exported files: ONNX, ONNX Runtime's quantization, and `torch.export` programs."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from bplightning.errors import UserError
from bplightning.exporting.graphs import Call, Graph, Parts

OPSET = 20
"""Default version of ONNX's operators, the first with GELU."""

OPSETS = range(18, 26)
"""The versions that torch writes and ONNX Runtime reads."""

TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}

NEEDED = ("onnx", "onnxruntime", "onnxscript")

ONE_FILE = int(1.5 * 2**30)
"""Most bytes of weights inside the graph's file, which protobuf limits to 2 GiB."""


def require_onnx() -> None:
    """Refuse to go on without the libraries for ONNX.

    Raises:
        UserError: One is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"the format onnx needs {', '.join(missing)}: pip install {' '.join(NEEDED)}.")


def check_opset(opset: int) -> None:
    """Refuse an unsupported version of ONNX's operators.

    Raises:
        UserError: It is not supported.
    """
    if opset not in OPSETS:
        raise UserError(
            f"opset is {opset}; it must be from {OPSETS[0]} to {OPSETS[-1]}, which torch writes and ONNX Runtime reads."
        )


def save_onnx(
    parts: Parts, out: Path, *, opset: int, suffix: str = "", fixed: Mapping[str, int] | None = None
) -> list[Path]:
    """Write the graphs of a model as ONNX.

    Args:
        parts: The graphs.
        out: An existing folder.
        opset: Version of ONNX's operators.
        suffix: Follows the name of each graph in the name of its file.
        fixed: Names of axes to their only size; other axes may have any.

    Returns:
        The files with graphs.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters import OnnxConfig, OnnxExporter

    files = []
    for graph in parts.graphs:
        with quiet():
            config = OnnxConfig(dynamic_shapes=_dynamic(graph.axes), opset_version=opset)
            model = OnnxExporter().export(graph.module, dict(graph.inputs), config).components["model"].program
        _name_axes(model, graph, fixed or {})
        _take_float32(model.graph)
        ClearMetadataAndDocStringPass()(model)  # where in the Python code each node comes from, in hundreds of kB
        model.producer_name, model.producer_version = "bplightning", version("bplightning")
        files.append(write_onnx(model, out / f"{graph.name}{suffix}.onnx"))
    return files


def quantize_onnx(file: Path, quantized: Path) -> Path:
    """Quantize the weights of an ONNX file to int8 by channel; activations are quantized at run time.

    Where a layer has lost everything, its weights are empty and stay as they are.

    Args:
        file: The file.
        quantized: The file to write.
    """
    import onnx_ir
    from transformers.exporters import ExportFormat, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    with quiet():
        model = onnx_ir.load(file)
        quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True, nodes_to_exclude=_empty(model)))
        made = quantizer.quantize(model, {}, ExportFormat.ONNX)
    return write_onnx(made, quantized)


def _empty(model: Any) -> list[str]:
    """Names of the nodes that read a weight without numbers."""
    found = []
    for node in model.graph.all_nodes():
        constants = [value.const_value for value in node.inputs if value is not None]
        if any(constant is not None and constant.size == 0 for constant in constants):
            found += [node.name, f"{node.name}_MatMul"]  # ONNX Runtime makes a MatMul of a Gemm, under this name
    return found


def onnx_calls(files: Sequence[Path], *, suffix: str = "") -> dict[str, Call]:
    """The functions that compute the graphs of ONNX files with ONNX Runtime on the CPU, by name.

    Args:
        files: The files.
        suffix: What follows the names of the graphs in those of the files.
    """
    return {file.stem.removesuffix(suffix): Session(file) for file in files}


class Session:
    """Runs an ONNX file with ONNX Runtime on the CPU, on nested tensors.

    Args:
        file: The file.

    Attributes:
        inputs: The declared inputs, each with ``name``, ``type`` and ``shape``.
    """

    def __init__(self, file: Path) -> None:
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only; it also warns about what it optimizes
        self.session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        self.outputs = [each.name for each in self.session.get_outputs()]

    def __call__(self, inputs: dict[str, Any], *, otherwise: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Its outputs, nested.

        Args:
            inputs: Inputs, nested; those that the file does not read are ignored.
            otherwise: Inputs by name for what is not among them.
        """
        fed = self.feed({**(otherwise or {}), **dict(_flat(inputs))})
        found = zip(self.outputs, self.session.run(None, fed), strict=True)
        return _nested({name: torch.from_numpy(array) for name, array in found})

    def feed(self, flat: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the file reads of some inputs, as arrays of its types.

        Args:
            flat: Inputs by name.
        """
        return {
            each.name: flat[each.name].to(TYPES.get(each.type, flat[each.name].dtype)).numpy() for each in self.inputs
        }


def save_torch(parts: Parts, out: Path) -> list[Path]:
    """Write the graphs of a model as `torch.export` programs.

    Args:
        parts: The graphs.
        out: An existing folder.

    Returns:
        The files.
    """
    from transformers.exporters import DynamoConfig, DynamoExporter

    files = []
    for graph in parts.graphs:
        file = out / f"{graph.name}.pt2"
        with quiet():
            config = DynamoConfig(dynamic_shapes=_dynamic(graph.axes))
            exported = DynamoExporter().export(graph.module, dict(graph.inputs), config)
            torch.export.save(exported.components["model"].program, file)
        files.append(file)
    return files


def torch_calls(files: Sequence[Path]) -> dict[str, Call]:
    """The functions that compute the programs of `torch.export` files, by name.

    Args:
        files: The files.
    """
    calls: dict[str, Call] = {}
    for file in files:
        with quiet():
            module = torch.export.load(file).module()
        dtype = next(module.parameters()).dtype
        calls[file.stem] = lambda inputs, module=module, dtype=dtype: module(  # type: ignore[misc]
            **{name: each.to(dtype) if each.is_floating_point() else each for name, each in inputs.items()}
        )
    return calls


def write_onnx(model: Any, file: Path) -> Path:
    """Write an `onnx_ir.Model`; large weights go into a file of their own next to it.

    Args:
        model: The model.
        file: The file.
    """
    import onnx_ir

    values = (value.const_value for value in model.graph.initializers.values())
    large = sum(value.nbytes for value in values if value is not None) > ONE_FILE
    data = file.with_name(f"{file.name}_data")  # the name that readers look for
    for old in (file, data):  # removed and not written over, since the model may still read its weights from there
        old.unlink(missing_ok=True)
    onnx_ir.save(model, file, external_data=data.name if large else None)
    return file


def _dynamic(axes: Any) -> Any:
    """The same nesting with torch's mark for an axis of any size, which fails if the model fixes the size."""
    if isinstance(axes, list):
        return [_dynamic(each) for each in axes]
    return {key: Dim.DYNAMIC if isinstance(each, str) else _dynamic(each) for key, each in axes.items()}


def _name_axes(model: Any, graph: Graph, fixed: Mapping[str, int]) -> None:
    """Replace torch's symbols by the names of the axes, or by their size where it is fixed."""
    import onnx_ir

    inputs, names = {value.name: value for value in model.graph.inputs}, {}
    for path, axis, name in _flat_axes(graph.axes):
        if path in inputs:  # the model may not read all of them
            names[str(inputs[path].shape[axis])] = name
    values = [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value is not None:  # None: its size is unknown
                named = re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), str(dim.value))
                value.shape[axis] = fixed.get(named, named)


def _take_float32(graph: Any) -> None:
    """Let numbers come in float32, as readers give them; only a key/value cache stays in the model's precision."""
    import onnx_ir as ir

    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT16 and not value.name.startswith("past_key_values"):
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            cast.replace_input_with(0, value)
            value.dtype = ir.DataType.FLOAT
            graph.insert_before(graph[0], cast)


def _flat_axes(axes: Any, prefix: str = "") -> Iterator[tuple[str, int, str]]:
    for key, each in axes.items() if isinstance(axes, dict) else enumerate(axes):
        if isinstance(each, str):
            yield prefix, key, each
        else:
            yield from _flat_axes(each, f"{prefix}.{key}".lstrip("."))


def _flat(nested: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its path, such as ``past_key_values.0.key``."""
    for key, each in nested.items() if isinstance(nested, dict) else enumerate(nested):
        path = f"{prefix}.{key}".lstrip(".")
        if isinstance(each, Tensor):
            yield path, each
        else:
            yield from _flat(each, path)


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `_flat`, with a dictionary with number keys in place of a list."""
    nested: dict[str, Any] = {}
    for path, tensor in flat.items():
        *parents, last = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tensor
    return nested


@contextmanager
def exporting(parts: Parts, format: str) -> Iterator[None]:
    """Report any error of an exporter or of a run of its files in one line; no list of such errors exists.

    Args:
        parts: The parts that are exported.
        format: The format.

    Raises:
        UserError: An exception was raised inside.
    """
    try:
        with quiet():
            yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        model = type(parts.model).__name__
        raise UserError(
            f"a {model} cannot be exported to {format} by transformers and torch as installed "
            f"({type(error).__name__}: {reason}): use another format or other versions."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, which report their progress and the versions they were tried with."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
