"""What int8 makes of a compact model: quantized by ONNX Runtime, evaluated on the task and timed, for the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.exporting.files import onnx_calls, require_onnx
from bplightning.exporting.variants import export_onnx
from bplightning.measuring import measure
from bplightning.reporting.schema import Numbers, Quantized

INT8 = "int8"
"""Weights in 8 bits by channel, activations too while the model runs."""


class OnnxModel(nn.Module):
    """A file of ONNX in the place of the model that it was made from: a task evaluates it like any other.

    Args:
        file: The file, of one graph.
        config: The model's configuration.
    """

    def __init__(self, file: Path, config: Any) -> None:
        super().__init__()
        self.config = config
        (self.call,) = onnx_calls([file]).values()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # by which others find a model's device

    def forward(self, **inputs: Tensor) -> ModelOutput:
        """As the model: what the graph does not read is left, what transformers makes itself need not be given."""
        if "input_ids" in inputs:
            ids = inputs["input_ids"]
            inputs = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **inputs}
        outputs = self.call({name: value.cpu() for name, value in inputs.items()})
        return ModelOutput({name: value.to(self.place.device) for name, value in outputs.items()})


def require_quantizable(task: Task, kind: str = INT8) -> None:
    """Refuse, before anything is trained, what could not be quantized or evaluated after it.

    Args:
        task: The task.
        kind: What is asked for.

    Raises:
        UserError: It is unknown, a library is missing, or the task generates text.
    """
    if kind != INT8:
        raise UserError(f"quantize is {kind!r}; it must be {INT8!r}, or left out.")
    require_onnx()
    if task.example_generation(1) is not None:
        raise UserError(
            f"quantize is {INT8!r}, and {type(task).__name__} generates text, which is not evaluated through ONNX "
            "Runtime: leave it out, and write the files with `export --quantize int8`."
        )


def quantized(
    task: Task,
    model: PreTrainedModel,
    dense: PreTrainedModel | None,
    *,
    evaluate: Callable[[nn.Module], Mapping[str, Any]],
) -> Quantized:
    """Quantize a compact model, evaluate it and time it.

    Args:
        task: Its task, for inputs.
        model: The compact model.
        dense: The dense model in torch that it is timed beside, or `None`.
        evaluate: From a model to its ``metrics``; on all ranks together.
    """
    own = model.device
    nn.Module.to(model, "cpu")  # transformers' own signature of `to` is not typed
    try:
        with tempfile.TemporaryDirectory() as folder:
            (file,) = export_onnx(model, Path(folder), dtype=torch.float32, int8=True, with_past=False)
            small = OnnxModel(file, model.config)
            size = sum(each.stat().st_size for each in Path(folder).iterdir())
    finally:
        nn.Module.to(model, own)
    metrics: Numbers = evaluate(small)["metrics"]
    small.cpu()
    speedup, intervals = None, {}
    if dense is not None and dense.device.type == "cpu":  # beside a GPU it would say nothing of int8
        shapes = measure.fitting(model, measure.DEFAULT_SHAPES)
        times = measure.latency({"dense": dense, INT8: small}, task.example_inputs, shapes)
        speedup = measure.speedup(times["dense"], times[INT8])
        intervals = measure.speedup_interval(times["dense"], times[INT8])
    return Quantized(
        kind=INT8,
        backend="onnxruntime",
        metrics=metrics,
        bytes_on_disk=size,
        speedup=speedup,
        speedup_interval=intervals,
    )
