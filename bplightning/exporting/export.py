"""Exporting a saved model to a folder that runs without this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from bplightning.compaction.example_inputs import comparison_inputs, positions_of, takes_images
from bplightning.compaction.saved_models import class_saved, load_saved, read_part
from bplightning.errors import UserError
from bplightning.exporting.check import largest_difference, text_inputs
from bplightning.exporting.companions import copy_companions
from bplightning.exporting.files import OPSET, check_opset, exporting, require_onnx, save_torch, torch_calls
from bplightning.exporting.gguf_format import ARCHITECTURE, GGUF_FILE, require_gguf, write_gguf
from bplightning.exporting.gguf_tokenizer import vocabulary_of
from bplightning.exporting.graphs import BATCH, LENGTH
from bplightning.exporting.variants import DTYPES, Variant, exported_parts, require_near, write_variants
from bplightning.io.files import made_parent, require_empty, whole_folder
from bplightning.io.run_folder import find_model

FORMATS = ("onnx", "torch-export", "gguf")

QUANTIZATIONS = {"int8": "onnx", "q8_0": "gguf"}
"""Name to the format that knows it."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        variants: The model in each precision.
    """

    variants: tuple[Variant, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files with graphs."""
        return tuple(file for variant in self.variants for file in variant.files)


def export_model(
    folder: Path,
    out: Path,
    *,
    format: str = "onnx",
    dtype: str = "float32",
    quantize: str | None = None,
    opset: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Exported:
    """Write a saved model in another format, checked against torch, along with its tokenizer and configuration.

    Args:
        folder: Folder of a model, dense or compact, or of a run, whose ``compact/`` is exported.
        out: Folder to write, which appears whole or not at all; it must not exist, or be empty.
        format: ``onnx``; ``torch-export`` for a `torch.export` program of one forward pass, without a cache; or
            ``gguf`` for a file of llama.cpp, which holds the tokenizer too and is not compared with torch.
        dtype: ``float16`` for ONNX files in this precision next to those in float32; the precision of a
            `torch.export` program or a GGUF file.
        quantize: ``int8`` for ONNX files with ONNX Runtime's dynamic quantization of the weights, by channel, next to
            those in float32; ``q8_0`` for GGUF's weights in 8 bits, in blocks of 32.
        opset: Version of ONNX's operators, 18 to 25; by default `OPSET`.
        batch: The only number of rows that the ONNX files take; by default any.
        length: The only number of tokens that they take; by default any.

    Returns:
        The files, and their difference from torch.

    Raises:
        UserError: There is no such model, `out` holds files, options exclude each other, a library is missing, the
            model cannot be exported, or the exported model does not compute what torch does.
    """
    _check_options(format=format, dtype=dtype, quantize=quantize, opset=opset, sizes=(batch, length))
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
    fixed = _fixed(model, batch=batch, length=length)
    checks = _checks(model, path, fixed)
    with whole_folder(out) as unproved:
        if format == "onnx":
            precisions = list(dict.fromkeys(["float32", dtype, *([] if quantize is None else [quantize])]))
            variants = write_variants(
                model, unproved, precisions=precisions, checks=checks, opset=opset or OPSET, fixed=fixed
            )
        else:
            variants = [_torch_program(model, unproved, dtype, checks)]
        copy_companions(path, unproved, model.config)
    exported = Exported(
        tuple(replace(each, files=tuple(out / file.relative_to(unproved) for file in each.files)) for each in variants)
    )
    rank_zero_info(_summary(exported, out, kind=f"ONNX, opset {opset or OPSET}" if format == "onnx" else format))
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
    return Exported((Variant(type, (file,), None, None),))


def _check_options(
    *, format: str, dtype: str, quantize: str | None, opset: int | None, sizes: tuple[int | None, int | None]
) -> None:
    for name, value, known in (
        ("format", format, FORMATS),
        ("dtype", dtype, DTYPES),
        ("quantize", quantize, QUANTIZATIONS),
    ):
        if value is not None and value not in known:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
    if format != "onnx" and any(each is not None for each in (opset, *sizes)):
        raise UserError(
            f"format is {format!r}, but opset, batch and length are only for onnx: leave them out, or give onnx."
        )
    if quantize is not None and QUANTIZATIONS[quantize] != format:
        raise UserError(
            f"format is {format!r}, but quantize {quantize} is only for {QUANTIZATIONS[quantize]}: leave it "
            "out, or give that format."
        )
    if format == "gguf" and quantize is not None and dtype != "float32":
        raise UserError(
            f"quantize is {quantize!r} and dtype {dtype!r}, but a GGUF file has one precision: give only one of both."
        )
    for name, size in zip(("batch", "length"), sizes, strict=True):
        if size is not None and size < 1:
            raise UserError(f"{name} is {size}; it must be 1 or more, or left out for any size.")
    check_opset(OPSET if opset is None else opset)


def _fixed(model: PreTrainedModel, *, batch: int | None, length: int | None) -> dict[str, int]:
    """Names of axes to their only size."""
    fixed = {name: size for name, size in ((BATCH, batch), (LENGTH, length)) if size is not None}
    if fixed and model.can_generate():
        raise UserError(
            f"batch or length is given, and {type(model).__name__} generates text, whose length grows: leave them out."
        )
    if length is not None and takes_images(model):
        raise UserError(
            f"length is {length}, and a {type(model).__name__} reads images, which have none: leave it out."
        )
    positions = positions_of(model)
    if length is not None and positions is not None and length > positions:
        raise UserError(f"length is {length}, and the model has {positions} positions: give at most these.")
    return fixed


def _checks(model: PreTrainedModel, path: Path, fixed: Mapping[str, int]) -> list[Mapping[str, Tensor]]:
    """Inputs on which files are compared with the model: random ones, and a few sentences where it reads text."""
    if fixed:
        return [comparison_inputs(model, rows=fixed.get(BATCH, 3), length=fixed.get(LENGTH, 16))]
    text = text_inputs(model, path)
    random: list[Mapping[str, Tensor]] = [
        comparison_inputs(model, rows=1, length=5),
        comparison_inputs(model, rows=3, length=160),
    ]
    return random if text is None else [*random, text]


def _torch_program(model: PreTrainedModel, out: Path, dtype: str, checks: Sequence[Mapping[str, Tensor]]) -> Variant:
    """Write a `torch.export` program of one forward pass, checked against the model."""
    parts = exported_parts(model, DTYPES[dtype], with_past=False)
    with exporting(parts, "torch-export"):
        files = save_torch(parts, out)
        difference = max(largest_difference(model, parts, torch_calls(files), inputs) for inputs in checks)
    return Variant(
        dtype, tuple(files), difference, require_near(difference, DTYPES[dtype], what=f"a {type(model).__name__}")
    )


def _load(path: Path) -> PreTrainedModel:
    """The model of a folder, in float32 and evaluation mode, with the class that it was saved from."""
    config = read_part(AutoConfig, path, what="the model")
    kind = class_saved(config, str(path))
    read = partial(kind.from_pretrained, dtype=torch.float32, trust_remote_code=False)
    return load_saved(read, path, what="the model").eval()


def _summary(exported: Exported, out: Path, *, kind: str) -> str:
    lines = [f"{out}: {kind}"]
    for variant in exported.variants:
        sizes = ", ".join(f"{file.relative_to(out)} {file.stat().st_size / 1e6:.1f} MB" for file in variant.files)
        rule = "measure its scores" if variant.limit is None else f"limit {variant.limit:g}"
        lines.append(
            f"{variant.precision}: {sizes}; largest difference from torch {variant.difference:.2g} of the largest "
            f"output ({rule})"
        )
    return "\n".join(lines)
