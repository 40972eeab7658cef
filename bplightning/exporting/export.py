"""Exporting a saved or loaded model to files that run without this project, checked against torch.

transformers' exporter (`transformers.exporters`) does the work. It uses a model's real shapes, so pruned widths need no
special treatment. The graphs that it gets are built in `bplightning.exporting.graphs`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import AutoConfig, PreTrainedModel

from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.saved_models import class_saved, load_saved, read_part
from bplightning.errors import UserError
from bplightning.exporting.check import LIMITS, largest_difference, text_inputs
from bplightning.exporting.files import (
    OPSET,
    check_opset,
    exporting,
    onnx_calls,
    quantize_onnx,
    require_onnx,
    save_onnx,
    save_torch,
    torch_calls,
)
from bplightning.exporting.gguf_format import ARCHITECTURE, GGUF_FILE, require_gguf, write_gguf
from bplightning.exporting.gguf_tokenizer import vocabulary_of
from bplightning.exporting.graphs import Parts, parts_of
from bplightning.io.files import copy_file, made_parent, require_empty, whole_folder
from bplightning.io.run_folder import find_model

FORMATS = ("onnx", "torch-export", "gguf")

QUANTIZATIONS = {"int8": "onnx", "q8_0": "gguf"}
"""Name to the format that knows it."""

DTYPES = {"float32": torch.float32, "float16": torch.float16}

COPIED = (
    "config.json",
    "generation_config.json",
    "task.json",
    "*tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*processor_config.json",
)
"""Files copied from the model's folder: those needed to make inputs and to read outputs, without weights."""


@dataclass(frozen=True)
class Exported:
    """The files written, and their difference from torch.

    Attributes:
        files: The files of the model, in the folder written.
        difference: Largest difference of two outputs between torch, in float32, and the files before any quantization,
            divided by the largest output; `None` where nothing could compute the files here (GGUF).
        limit: The largest difference allowed, or `None`.
        quantized_difference: The difference of the quantized files; `None` where nothing was quantized.
    """

    files: tuple[Path, ...]
    difference: float | None
    limit: float | None
    quantized_difference: float | None


def export_model(
    folder: Path,
    out: Path,
    *,
    format: str = "onnx",
    dtype: str = "float32",
    quantize: str | None = None,
    opset: int | None = None,
) -> Exported:
    """Write a saved model in another format, checked against torch, along with its tokenizer and configuration.

    Args:
        folder: Folder of a model, dense or compact, or of a run, whose ``compact/`` is exported.
        out: Folder to write, which appears whole or not at all; it must not exist, or be empty.
        format: ``onnx``; ``torch-export`` for a `torch.export` program of one forward pass, without a cache; or
            ``gguf`` for a file of llama.cpp, which holds the tokenizer too and is not compared with torch.
        dtype: Precision of the exported model, a key of `DTYPES`.
        quantize: ``int8`` for ONNX Runtime's dynamic quantization of the weights, by channel; ``q8_0`` for GGUF's
            weights in 8 bits, in blocks of 32.
        opset: Version of ONNX's operators, 18 to 25; by default `OPSET`.

    Returns:
        The files, and their difference from torch.

    Raises:
        UserError: There is no such model, `out` holds files, options exclude each other, a library is missing, the
            model cannot be exported, or the exported model does not compute what torch does.
    """
    _check_options(format=format, dtype=dtype, quantize=quantize, opset=opset)
    path = find_model(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{str(folder)!r} has no compact model yet: write one with `compact`, and give its folder.")
    require_empty(out)
    if format == "onnx":
        require_onnx()
    made_parent(out)
    model = _load(path)
    if format == "gguf":
        return _export_gguf(model, path, out, quantize or dtype)
    checks = [comparison_inputs(model, rows=1, length=5), comparison_inputs(model, rows=3, length=160)]
    text = text_inputs(model, path)
    checks += [] if text is None else [text]
    with whole_folder(out) as unproved:
        parts = exported_parts(model, DTYPES[dtype], with_past=format == "onnx")
        names = ", ".join(graph.name for graph in parts.graphs)
        rank_zero_info(f"Exporting {type(model).__name__} to {format}, in {len(parts.graphs)} part(s): {names}")
        with exporting(parts, format):
            if format == "onnx":
                files = save_onnx(parts, unproved, opset=opset or OPSET)
                calls = onnx_calls(files)
            else:
                files = save_torch(parts, unproved)
                calls = torch_calls(files)
            difference = max(largest_difference(model, parts, calls, inputs) for inputs in checks)
        limit = _require_near(difference, DTYPES[dtype], what=repr(str(path)))
        quantized = None
        if quantize is not None:
            with exporting(parts, f"{format} of {quantize}"):
                for file in files:
                    quantize_onnx(file)
                calls = onnx_calls(files)
                quantized = max(largest_difference(model, parts, calls, inputs) for inputs in checks)
            _require_numbers(quantized, what=repr(str(path)))
        for pattern in COPIED:
            for file in path.glob(pattern):
                copy_file(file, unproved / file.name)
    exported = Exported(tuple(out / file.name for file in files), difference, limit, quantized)
    kind = f"ONNX, opset {opset or OPSET}" if format == "onnx" else "torch.export"
    rank_zero_info(_summary(exported, kind=f"{kind}, {quantize or dtype}", real=text is not None))
    return exported


def _export_gguf(model: PreTrainedModel, path: Path, out: Path, type: str) -> Exported:
    """Write a GGUF file, whose numbers are those of the model; llama.cpp is not there to compare with."""
    require_gguf(model)
    config: Any = model.config
    vocabulary = vocabulary_of(path, config.vocab_size)
    with whole_folder(out) as unproved:
        write_gguf(model, vocabulary, unproved / GGUF_FILE, type=type)
    file = out / GGUF_FILE
    text = "" if vocabulary is not None else "; the folder has no tokenizer, so the file knows no text"
    rank_zero_info(f"{out}: {file.name} {file.stat().st_size / 1e6:.1f} MB (GGUF, {ARCHITECTURE}, {type}){text}")
    return Exported((file,), None, None, None)


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
    _require_near(difference, precision, what=what)
    if int8:
        with exporting(parts, "onnx of int8"):
            for file in files:
                quantize_onnx(file)
            difference = largest_difference(reference, parts, onnx_calls(files), inputs)
        _require_numbers(difference, what=what)
    return files


def _require_numbers(difference: float, *, what: str) -> None:
    if not isfinite(difference):
        raise UserError(f"int8 makes outputs of {what} NaN or infinite, so it is not used: leave the quantization out.")


def _require_near(difference: float, dtype: torch.dtype, *, what: str) -> float:
    """Refuse a difference from torch that rounding does not explain; return the limit."""
    limit = LIMITS[dtype]
    if not difference <= limit:
        raise UserError(
            f"the export of {what} differs from torch by {difference:.3g} of the largest output, more than the "
            f"{limit:g} that {str(dtype).removeprefix('torch.')} rounding explains, so it is not written: try another "
            "format or dtype."
        )
    return limit


def _check_options(*, format: str, dtype: str, quantize: str | None, opset: int | None) -> None:
    for name, value, known in (
        ("format", format, FORMATS),
        ("dtype", dtype, DTYPES),
        ("quantize", quantize, QUANTIZATIONS),
    ):
        if value is not None and value not in known:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
    if format != "onnx" and opset is not None:
        raise UserError(f"format is {format!r}, but opset is only for onnx: leave it out, or give onnx.")
    if quantize is not None and QUANTIZATIONS[quantize] != format:
        raise UserError(
            f"format is {format!r}, but quantize {quantize} is only for {QUANTIZATIONS[quantize]}: leave it "
            "out, or give that format."
        )
    if quantize is not None and dtype != "float32":
        raise UserError(
            f"quantize is {quantize!r} and dtype {dtype!r}, but 8-bit weights need float32: give only one of both."
        )
    check_opset(OPSET if opset is None else opset)


def _load(path: Path) -> PreTrainedModel:
    """The model of a folder, in float32 and evaluation mode, with the class that it was saved from."""
    config = read_part(AutoConfig, path, what="the model")
    kind = class_saved(config, str(path))
    read = partial(kind.from_pretrained, dtype=torch.float32, trust_remote_code=False)
    return load_saved(read, path, what="the model").eval()


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


def _summary(exported: Exported, *, kind: str, real: bool) -> str:
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in exported.files)
    difference, limit = exported.difference, exported.limit
    assert difference is not None
    lines = [
        f"{exported.files[0].parent}: {sizes} ({kind})",
        f"Largest difference from torch on {'random inputs and text' if real else 'random inputs'}: "
        f"{difference:.2g} of the largest output (limit {limit:g})",
    ]
    if exported.quantized_difference is not None:
        lines.append(
            f"After quantization: {exported.quantized_difference:.2g}; measure the scores of the quantized model."
        )
    return "\n".join(lines)
