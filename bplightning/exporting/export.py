"""The verb `export`: a saved model as files that run without this project, checked against torch.

To others, from here: `export_onnx` writes the ONNX files of a loaded model::

    export_onnx(model, out, *, opset=20, dtype=None, int8=False, with_past=True) -> list[Path]

The work is transformers' own exporter's (`transformers.exporters`), which goes by a model's real shapes and so takes
pruned widths as they are. What it is given is in `bplightning.exporting.graphs`.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import AutoConfig, PreTrainedModel

from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import load_saved
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
from bplightning.exporting.graphs import Parts, parts_of
from bplightning.io.files import made_parent
from bplightning.io.run_folder import find_model

FORMATS = ("onnx", "torch-export")

DTYPES = {"float32": torch.float32, "float16": torch.float16}

BESIDE = (
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
"""What is copied from the model's folder: all that is wanted to make inputs and to read outputs, and no weights."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from torch.

    Attributes:
        files: The files with the model, in the folder written.
        difference: Largest difference of two outputs between torch, in float32, and the files before any quantization,
            divided by the largest output.
        limit: The most that was allowed for.
        quantized_difference: The same of the quantized files; `None` where nothing was quantized.
    """

    files: tuple[Path, ...]
    difference: float
    limit: float
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
    """Write a saved model in another format, checked against torch, with its tokenizer and configuration beside it.

    Args:
        folder: A model's folder, dense or compact, or a run's, which stands for its ``compact/``.
        out: Folder to write, which appears whole or not at all; it must not exist, or be empty.
        format: ``onnx``, or ``torch-export`` for a `torch.export` program of one forward pass, without a cache.
        dtype: Precision to compute in, a key of `DTYPES`.
        quantize: ``int8`` for ONNX Runtime's dynamic quantization of the weights, by channel.
        opset: Version of ONNX's operators, 18 to 25; by default `OPSET`.

    Returns:
        The files, and how far they are from torch.

    Raises:
        UserError: There is no such model, `out` holds files, options do not go together, a library is missing, the
            model cannot be exported, or what was exported does not compute what torch does.
    """
    _check_options(format=format, dtype=dtype, quantize=quantize, opset=opset)
    path = find_model(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{str(folder)!r} has no compact model yet: write one with `compact`, and give its folder.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"cannot write to {str(out)!r}, which exists and is not an empty folder: name another one.")
    if format == "onnx":
        require_onnx()
    place = made_parent(out)
    model = _load(path)
    checks = [comparison_inputs(model, rows=1, length=5), comparison_inputs(model, rows=3, length=160)]
    text = text_inputs(model, path)
    checks += [] if text is None else [text]
    unproved = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=place))
    try:
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
        for pattern in BESIDE:
            for file in path.glob(pattern):
                shutil.copy(file, unproved / file.name)
        unproved.chmod(path.stat().st_mode)  # a temporary folder is its owner's alone
        if out.exists():
            out.rmdir()
        unproved.rename(out)
    except BaseException:
        shutil.rmtree(unproved, ignore_errors=True)
        raise
    exported = Exported(tuple(out / file.name for file in files), difference, limit, quantized)
    kind = f"ONNX, opset {opset or OPSET}" if format == "onnx" else "torch.export"
    rank_zero_info(_summary(exported, kind=f"{kind}, {quantize or dtype}", real=text is not None))
    return exported


def export_onnx(
    model: PreTrainedModel,
    out: Path,
    *,
    opset: int = OPSET,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    with_past: bool = True,
) -> list[Path]:
    """Write the ONNX files of a loaded model, checked against it; batch and length may have any size in them.

    A model that does not generate, or any model without `with_past`, becomes ``model.onnx``, with the arguments of its
    forward pass as inputs. A decoder with its cache becomes one too, an encoder-decoder ``encoder_model.onnx``,
    ``decoder_model.onnx`` and ``decoder_with_past_model.onnx``. More than 1.5 GiB of weights go into a file beside it.

    Args:
        model: The model, on the CPU and in evaluation mode; it stays as it is.
        out: An existing folder.
        opset: Version of ONNX's operators, 18 to 25.
        dtype: Precision to compute in, float32 or float16; by default the model's own.
        int8: Whether weights are quantized, as `export_model` has it.
        with_past: Whether a model that generates gets inputs and outputs for a key/value cache.

    Returns:
        The files with graphs.

    Raises:
        UserError: A library is missing, the model cannot be exported, or what was exported does not compute what it
            does.
    """
    require_onnx()
    check_opset(opset)
    if (precision := dtype or model.dtype) not in LIMITS:
        raise UserError(f"the model is in {precision}: ONNX files are in float32 or float16, name one as dtype.")
    parts = exported_parts(model, dtype, with_past=with_past)
    reference = parts.model if precision == torch.float32 else model  # the more precise of the two
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
        raise UserError(
            f"int8 makes outputs of {what} that are no numbers (NaN or infinite): it is refused. Leave the "
            "quantization out."
        )


def _require_near(difference: float, dtype: torch.dtype, *, what: str) -> float:
    """Refuse what is further from torch than rounding explains, and give that limit."""
    limit = LIMITS[dtype]
    if not difference <= limit:
        raise UserError(
            f"what was exported of {what} differs from torch by {difference:.3g} of the largest output, more than the "
            f"{limit:g} that {str(dtype).removeprefix('torch.')} rounding explains: it is refused. Try another format "
            "or dtype."
        )
    return limit


def _check_options(*, format: str, dtype: str, quantize: str | None, opset: int | None) -> None:
    for name, value, known in (
        ("format", format, FORMATS),
        ("dtype", dtype, DTYPES),
        ("quantize", quantize, ("int8",)),
    ):
        if value is not None and value not in known:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
    if format != "onnx" and (quantize is not None or opset is not None):
        raise UserError(f"format is {format!r}, and quantize and opset are ONNX's: leave them out, or give onnx.")
    if quantize is not None and dtype != "float32":
        raise UserError(f"quantize is {quantize!r} and dtype {dtype!r}, but weights of int8 go with float32: give one.")
    check_opset(OPSET if opset is None else opset)


def _load(path: Path) -> PreTrainedModel:
    """The model of a folder, in float32 and evaluation mode, of the class that it was saved from."""
    config = load_saved(AutoConfig.from_pretrained, path, what="the model")
    name = (config.architectures or ["none"])[0]
    kind: Any = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel):
        raise UserError(
            f"the model {str(path)!r} is of class {name!r} by its config.json, which transformers does not have: give "
            "a folder that `save_pretrained` wrote."
        )
    model = load_saved(lambda folder: kind.from_pretrained(folder, dtype=torch.float32), path, what="the model")
    return model.eval()


def exported_parts(model: PreTrainedModel, dtype: torch.dtype | None = None, *, with_past: bool = True) -> Parts:
    """What is exported of a model, in a precision; the model itself keeps its own.

    Args:
        model: The model, on the CPU and in evaluation mode.
        dtype: The precision; by default the model's own.
        with_past: Whether a model that generates gets graphs with a key/value cache.
    """
    typed: Any = model
    if model.dtype != (dtype or model.dtype):
        typed = copy.deepcopy(typed).to(dtype)
    if getattr(model.config, "num_experts_per_tok", None) is not None:
        # A loop over the experts that have tokens cannot be traced; all experts at once can.
        typed = copy.deepcopy(typed) if typed is model else typed
        typed.set_experts_implementation("grouped_mm")
    return parts_of(typed, comparison_inputs(typed, rows=3, length=9), with_past=with_past)


def _summary(exported: Exported, *, kind: str, real: bool) -> str:
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in exported.files)
    lines = [
        f"{exported.files[0].parent}: {sizes} ({kind})",
        f"Largest difference from torch on {'random inputs and text' if real else 'random inputs'}: "
        f"{exported.difference:.2g} of the largest output (limit {exported.limit:g})",
    ]
    if exported.quantized_difference is not None:
        lines.append(f"After quantization: {exported.quantized_difference:.2g}; what that does to scores, measure.")
    return "\n".join(lines)
