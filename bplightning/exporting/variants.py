"""ONNX files of a loaded model in one or several precisions, checked against torch.

transformers' exporter (`transformers.exporters`) does the work. It uses a model's real shapes, so pruned widths need no
special treatment. The graphs that it gets are built in `bplightning.exporting.graphs`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.errors import UserError
from bplightning.exporting.check import LIMITS, largest_difference
from bplightning.exporting.files import (
    OPSET,
    Session,
    check_opset,
    exporting,
    onnx_calls,
    quantize_onnx,
    require_onnx,
    save_onnx,
    write_onnx,
)
from bplightning.exporting.graphs import STEPS, Parts, parts_of
from bplightning.exporting.merged import MERGED, merge_files, merged_calls

DTYPES = {"float32": torch.float32, "float16": torch.float16}

SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""What follows a graph's name in the name of its ONNX file, as readers of such folders expect it."""


@dataclass(frozen=True)
class Variant:
    """The files of a model in one precision.

    Attributes:
        precision: A key of `SUFFIXES`.
        files: Its files with graphs, in the folder written.
        difference: Largest difference of two outputs between torch, in float32, and these files, divided by the largest
            output; `None` where nothing could compute them here, as for GGUF.
        limit: The largest difference allowed; `None` where any is, as for int8.
    """

    precision: str
    files: tuple[Path, ...]
    difference: float | None
    limit: float | None


def write_variants(
    model: PreTrainedModel,
    out: Path,
    *,
    precisions: Sequence[str],
    checks: Sequence[Mapping[str, Tensor]],
    opset: int = OPSET,
    fixed: Mapping[str, int] | None = None,
) -> list[Variant]:
    """Write ``onnx/`` with the files of a model in some precisions, checked against it.

    Args:
        model: The model, in float32, on the CPU and in evaluation mode.
        out: An existing folder.
        precisions: Keys of `SUFFIXES`, ``float32`` first.
        checks: Inputs of the model's `forward` on which the files are compared with it.
        opset: Version of ONNX's operators.
        fixed: Names of axes to their only size.

    Raises:
        UserError: The model cannot be exported, or the files do not compute what it does.
    """
    inside = out / "onnx"
    inside.mkdir()
    full: list[Path] = []
    variants = []
    for precision in precisions:
        suffix = SUFFIXES[precision]
        parts = exported_parts(model, DTYPES.get(precision))
        names = ", ".join(graph.name for graph in parts.graphs)
        rank_zero_info(
            f"Exporting {type(model).__name__} to ONNX, {precision}, in {len(parts.graphs)} part(s): {names}"
        )
        with exporting(parts, f"onnx of {precision}"):
            if precision in DTYPES:
                files = save_onnx(parts, inside, opset=opset, suffix=suffix, fixed=fixed)
                full = full or list(files)
            else:
                files = [quantize_onnx(file, file.with_stem(f"{file.stem}{suffix}")) for file in full]
            ways = [onnx_calls(files, suffix=suffix)]
            if len(files) == len(STEPS):
                _, first, later = files
                files.append(write_onnx(merge_files(first, later), inside / f"{MERGED}{suffix}.onnx"))
                ways.append({STEPS[0]: ways[0][STEPS[0]], **merged_calls(Session(files[-1]))})
            difference = max(largest_difference(model, parts, calls, inputs) for calls in ways for inputs in checks)
        limit = None
        if precision in DTYPES:
            limit = require_near(difference, DTYPES[precision], what=f"a {type(model).__name__}")
        else:
            _require_numbers(difference, what=f"a {type(model).__name__}")
        variants.append(Variant(precision, tuple(files), difference, limit))
    return variants


def export_onnx(
    model: PreTrainedModel,
    out: Path,
    *,
    opset: int = OPSET,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    with_past: bool = True,
) -> list[Path]:
    """Write the ONNX files of a loaded model, checked against it; batch and length may have any size.

    A model that does not generate, or any model without `with_past`, becomes ``model.onnx``, with the arguments of its
    forward pass as inputs. A decoder with its cache is also one file; an encoder-decoder becomes
    ``encoder_model.onnx``, ``decoder_model.onnx`` and ``decoder_with_past_model.onnx``. More than 1.5 GiB of weights go
    into a separate file.

    Args:
        model: The model, on the CPU and in evaluation mode; it stays unchanged.
        out: An existing folder.
        opset: Version of ONNX's operators, 18 to 25.
        dtype: Precision of the exported model, float32 or float16; by default the model's own.
        int8: Whether weights are quantized, as by `export_model`.
        with_past: Whether a model that generates gets inputs and outputs for a key/value cache.

    Returns:
        The files with graphs.

    Raises:
        UserError: A library is missing, the model cannot be exported, or the exported model does not compute the same.
    """
    require_onnx()
    check_opset(opset)
    if (precision := dtype or model.dtype) not in LIMITS:
        raise UserError(
            f"the model is in {precision}, but ONNX files are in float32 or float16: give one of these as dtype."
        )
    parts = exported_parts(model, dtype, with_past=with_past)
    reference = parts.model if precision == torch.float32 else model  # the more precise of both
    with exporting(parts, "onnx"):
        files = save_onnx(parts, out, opset=opset)
        inputs = comparison_inputs(model, rows=3, length=9)
        difference = largest_difference(reference, parts, onnx_calls(files), inputs)
    what = f"a {type(model).__name__}"
    require_near(difference, precision, what=what)
    if int8:
        with exporting(parts, "onnx of int8"):
            for file in files:
                quantize_onnx(file, file)
            difference = largest_difference(reference, parts, onnx_calls(files), inputs)
        _require_numbers(difference, what=what)
    return files


def _require_numbers(difference: float, *, what: str) -> None:
    if not isfinite(difference):
        raise UserError(f"int8 makes outputs of {what} NaN or infinite, so it is not used: leave the quantization out.")


def require_near(difference: float, dtype: torch.dtype, *, what: str) -> float:
    """Refuse a difference from torch that rounding does not explain; return the limit."""
    limit = LIMITS[dtype]
    if not difference <= limit:
        raise UserError(
            f"the export of {what} differs from torch by {difference:.3g} of the largest output, more than the "
            f"{limit:g} that {str(dtype).removeprefix('torch.')} rounding explains, so it is not written: try another "
            "format or dtype."
        )
    return limit


def exported_parts(model: PreTrainedModel, dtype: torch.dtype | None = None, *, with_past: bool = True) -> Parts:
    """The parts that a model is exported as, in a precision; the model itself stays unchanged.

    Args:
        model: The model, on the CPU and in evaluation mode.
        dtype: The precision; by default the model's own.
        with_past: Whether a model that generates gets graphs with a key/value cache.
    """
    typed: Any = model
    if model.dtype != (dtype or model.dtype):
        typed = copy.deepcopy(typed).to(dtype)
    if getattr(model.config, "num_experts_per_tok", None) is not None:
        # A loop over the experts that get tokens cannot be traced, but computing all of them at once can.
        typed = copy.deepcopy(typed) if typed is model else typed
        typed.set_experts_implementation("grouped_mm")
    return parts_of(typed, comparison_inputs(typed, rows=3, length=9), with_past=with_past)
