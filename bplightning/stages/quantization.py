"""What int8 makes of a compact model: quantized by ONNX Runtime, evaluated on the task and timed, for the report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.exporting.files import onnx_calls, quantize_onnx, require_onnx
from bplightning.exporting.static_quantization import StaticQuantization
from bplightning.exporting.variants import export_onnx
from bplightning.measuring import measure
from bplightning.reporting.schema import Numbers, OnnxNumbers, Quantized, StaticInt8
from bplightning.stages.calibration_set import CalibrationSet

INT8 = "int8"
"""Weights in 8 bits by channel, activations too while the model runs, by ranges of each batch."""

INT8_STATIC = "int8-static"
"""The same by ranges of activations that are measured once, on training examples."""

CALIBRATION_EXAMPLES = 128
"""Training examples that ranges of activations are measured on."""

Evaluate = Callable[[nn.Module], Mapping[str, Any]]
"""From a model to its ``metrics``, on all ranks together."""


@dataclass(frozen=True)
class Gate:
    """What a statically quantized model must hold.

    Attributes:
        max_loss: The most that it may lose of the compact model's score.
        metrics: The compact model's.
        seed: What the choice of calibration examples follows from.
        keep: Where the file is kept; `None`, as on ranks after the first, keeps none.
    """

    max_loss: float
    metrics: Mapping[str, Any]
    seed: int
    keep: Path | None

    def loss(self, metrics: Mapping[str, Any], task: Task) -> float:
        """What these metrics lose of the compact model's score; below 0 where they gain."""
        before, now = (float(each[task.monitor]) for each in (self.metrics, metrics))
        return before - now if task.monitor_mode == "max" else now - before


class OnnxModel(nn.Module):
    """A file of ONNX in the place of the model that it was made from: a task evaluates it like any other.

    Args:
        file: The file, of one graph.
        config: The model's configuration.
    """

    def __init__(self, file: Path, config: Any) -> None:
        super().__init__()
        self.file, self.config = file, config
        (self.call,) = onnx_calls([file]).values()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # by which others find a model's device

    def forward(self, **inputs: Tensor) -> ModelOutput:
        """As the model: what the graph does not read is left, what transformers makes itself need not be given."""
        outputs = self.call({name: value.cpu() for name, value in _completed(inputs).items()})
        return ModelOutput({name: value.to(self.place.device) for name, value in outputs.items()})


def _completed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "input_ids" not in inputs:
        return dict(inputs)
    ids = inputs["input_ids"]
    return {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **inputs}


def require_quantizable(task: Task, kind: str = INT8, *, max_loss: float = 0.0) -> None:
    """Refuse, before anything is trained, what could not be quantized or evaluated after it.

    Args:
        task: The task.
        kind: What is asked for.
        max_loss: What it may lose.

    Raises:
        UserError: It is unknown, a library is missing, or the task generates text.
    """
    if kind not in (INT8, INT8_STATIC):
        raise UserError(f"quantize is {kind!r}; it must be {INT8!r} or {INT8_STATIC!r}, or left out.")
    if not (isfinite(max_loss) and max_loss >= 0):
        raise UserError(f"max_loss is {max_loss}; it must be 0 or more, in the unit of the task's first metric.")
    require_onnx()
    if task.example_generation(1) is not None:
        raise UserError(
            f"quantize is {kind!r}, and {type(task).__name__} generates text, which is not evaluated through ONNX "
            "Runtime: leave it out, and write the files with `export --quantize int8`."
        )


def quantized(
    task: Task, model: PreTrainedModel, dense: PreTrainedModel | None, *, evaluate: Evaluate, gate: Gate | None = None
) -> Quantized:
    """Quantize a compact model, evaluate it and time it.

    Args:
        task: Its task, for inputs and calibration examples.
        model: The compact model.
        dense: The dense model in torch that it is timed beside, or `None`.
        evaluate: From a model to its ``metrics``.
        gate: What the model must hold where ranges are measured beforehand; `None` quantizes by ranges of each batch.

    Raises:
        UserError: It cannot be exported, has no calibration examples, or holds the gate with no layer in 8 bits.
    """
    kind = INT8 if gate is None else INT8_STATIC
    own = model.device
    nn.Module.to(model, "cpu")  # transformers' own signature of `to` is not typed
    with tempfile.TemporaryDirectory() as folder:
        try:
            (full,) = export_onnx(model, Path(folder), dtype=torch.float32, with_past=False)
        finally:
            nn.Module.to(model, own)
        metrics: dict[str, Any] = {}
        files = {INT8: quantize_onnx(full, full.with_stem(INT8))}
        metrics[INT8] = evaluate(OnnxModel(files[INT8], model.config))["metrics"]
        static: StaticInt8 | None = None
        if gate is not None:
            files = {"float32": full, **files, INT8_STATIC: full.with_stem(INT8_STATIC)}
            metrics["float32"] = gate.metrics
            metrics[INT8_STATIC], static = _within(task, model, full, files[INT8_STATIC], gate, evaluate=evaluate)
        made = _numbers(task, model, dense, files, metrics)
        if gate is not None and gate.keep is not None:
            for file in _with_data(files[kind]):
                shutil.copyfile(file, gate.keep.with_name(file.name))
    found = made.pop(kind)
    if static is not None:
        static["compared"] = list(made.values())
    return Quantized(**found, backend="onnxruntime", static=static)


def _within(
    task: Task, model: PreTrainedModel, full: Path, made: Path, gate: Gate, *, evaluate: Evaluate
) -> tuple[Numbers, StaticInt8]:
    """Write the file with as many layers in 8 bits as the gate allows; its metrics, and how it was made."""
    task.setup("fit")
    examples = CalibrationSet(task, examples=CALIBRATION_EXAMPLES, seed=gate.seed)
    quantizer = StaticQuantization(full, [_completed(batch) for batch in examples], full.with_suffix(".json"))

    def metrics_of(left: Sequence[str]) -> Numbers:
        quantizer.write([layer for layer in quantizer.layers if layer not in left], made)
        found: Numbers = evaluate(OnnxModel(made, model.config))["metrics"]
        rank_zero_info(f"{INT8_STATIC} with {len(left)} layers in float loses {gate.loss(found, task):.4g}.")
        return found

    left: list[str] = []
    metrics = metrics_of(left)
    if not gate.loss(metrics, task) <= gate.max_loss:  # nor where it is no number
        rank_zero_info(f"Measuring what each of {len(quantizer.layers)} layers does to the outputs in 8 bits.")
        left, metrics = _fewest(quantizer.by_harm(), metrics_of, lambda each: gate.loss(each, task) <= gate.max_loss)
    found = StaticInt8(
        calibration_examples=examples.examples,
        max_loss=gate.max_loss,
        loss=gate.loss(metrics, task),
        layers=len(quantizer.layers),
        float_layers=left,
        compared=[],
    )
    return metrics, found


def _fewest(
    order: Sequence[str], metrics_of: Callable[[Sequence[str]], Numbers], holds: Callable[[Numbers], bool]
) -> tuple[list[str], Numbers]:
    """The fewest first layers of an order that are enough, by bisection, as if more in float were never worse.

    The file that was measured last may be another one, so the one found is written again.
    """
    few, enough, last = 0, len(order), None  # 0 is known not to hold; all would be the model in float
    while enough - few > 1:
        middle = (few + enough) // 2
        metrics, last = metrics_of(order[:middle]), middle
        few, enough = (few, middle) if holds(metrics) else (middle, enough)
    if enough == len(order):
        raise UserError(
            f"{INT8_STATIC} loses more than max_loss allows with all of {len(order)} layers in 8 bits, and still with "
            "one: allow more with --max_loss, or take --quantize int8."
        )
    return list(order[:enough]), metrics if last == enough else metrics_of(order[:enough])


def _numbers(
    task: Task,
    model: PreTrainedModel,
    dense: PreTrainedModel | None,
    files: Mapping[str, Path],
    metrics: Mapping[str, Any],
) -> dict[str, OnnxNumbers]:
    """Size and speed of some files, timed next to each other and to the dense model, by their kinds."""
    times = {}
    if dense is not None and dense.device.type == "cpu":  # beside a GPU it would say nothing of int8
        shapes = measure.fitting(model, measure.DEFAULT_SHAPES)
        runs = {kind: OnnxModel(file, model.config) for kind, file in files.items()}
        times = measure.latency({"dense": dense, **runs}, task.example_inputs, shapes)
    return {
        kind: OnnxNumbers(
            kind=kind,
            metrics=dict(metrics[kind]),
            bytes_on_disk=sum(each.stat().st_size for each in _with_data(file)),
            speedup=measure.speedup(times["dense"], times[kind]) if times else None,
            speedup_interval=measure.speedup_interval(times["dense"], times[kind]) if times else {},
        )
        for kind, file in files.items()
    }


def _with_data(file: Path) -> list[Path]:
    """A file and, where its weights are large, the one that holds them."""
    return [each for each in (file, file.with_name(f"{file.name}.data")) if each.is_file()]
