"""ONNX Runtime's static quantization: ranges of activations are measured beforehand, some layers may stay in float."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bplightning.exporting.files import Session, quiet, write_onnx

LINEAR = ("Gemm", "MatMul")
"""The operators of layers with weights. Embeddings stay in float: ONNX Runtime would convert all rows at every run."""

OPTIONS = {"OpTypesToExcludeOutputQuantization": list(LINEAR)}
"""Results of a layer stay in float, where a residual or a norm takes them: better scores at about the same speed."""


class StaticQuantization:
    """A file in float32 that is quantized with ranges from calibration examples: as a whole, or some of its layers.

    Inputs of a layer become unsigned, its weights signed, by channel: the pair that x86 processors have instructions
    for. Layers that have lost everything have no numbers to quantize, and are no layers here.

    Args:
        file: The file, of one graph.
        batches: Inputs of the model, by name.
        ranges: A file to write, in which ranges are kept from one call to the next.

    Attributes:
        layers: Names of the nodes that can be quantized, in the order of the graph.
    """

    def __init__(self, file: Path, batches: Sequence[Mapping[str, Tensor]], ranges: Path) -> None:
        import onnx_ir

        self.file, self.ranges = file, ranges
        session = Session(file)
        self.feeds = [session.feed(batch) for batch in batches]
        self.expected = [session.session.run(None, feed) for feed in self.feeds]
        self.layers = [str(node.name) for node in onnx_ir.load(file).graph.all_nodes() if _has_weight(node)]

    def write(self, layers: Sequence[str], quantized: Path) -> Path:
        """Write the file with these layers in 8 bits.

        Args:
            layers: Some of `layers`, one at least.
            quantized: The file to write.
        """
        import onnx_ir
        from onnxruntime.quantization import QuantType, quantize_static

        with quiet(), tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made.onnx"
            quantize_static(
                self.file,
                made,
                _Feeds(self.feeds),
                op_types_to_quantize=list(LINEAR),
                nodes_to_quantize=list(layers),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
                extra_options=dict(OPTIONS),
                calibration_cache_path=self.ranges,  # measured by the first call
            )
            model = onnx_ir.load(made)
            onnx_ir.external_data.load_to_model(model)
            return write_onnx(model, quantized)

    def by_harm(self) -> list[str]:
        """The layers, those first that change the model's outputs most where they alone are quantized."""
        harm = {}
        with tempfile.TemporaryDirectory() as folder:
            for layer in self.layers:
                harm[layer] = self._change(self.write([layer], Path(folder) / "alone.onnx"))
        return sorted(self.layers, key=lambda layer: -harm[layer])

    def _change(self, file: Path) -> float:
        """How far a file's outputs on the calibration examples are from those in float, as a share of their squares."""
        session = Session(file).session
        changed = total = 0.0
        for feed, expected in zip(self.feeds, self.expected, strict=True):
            for found, exact in zip(session.run(None, feed), expected, strict=True):
                changed += float(np.square(found - exact, dtype=np.float64).sum())
                total += float(np.square(exact, dtype=np.float64).sum())
        return changed / total if np.isfinite(changed) and total else np.inf


class _Feeds:
    """Inputs as ONNX Runtime's calibration reads them."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._left: Iterator[Mapping[str, Any]] = iter(feeds)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._left, None)


def _has_weight(node: Any) -> bool:
    """Whether a node is a layer with weights, and has not lost them all."""
    if node.op_type not in LINEAR:
        return False
    weight = node.inputs[1].const_value
    return weight is not None and weight.size > 0
