"""What computes a model's forward pass: torch as it is, a CUDA graph, torch.compile, ONNX Runtime.

A backend prepares a model once and binds it to the inputs of one shape; what it binds is called without arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bplightning.errors import UserError


class Bind(Protocol):
    """From the inputs of one shape, on the model's device, to a call that computes them."""

    def __call__(self, inputs: Mapping[str, Tensor], tokens: int | None = None) -> Callable[[], object]:
        """Bind.

        Args:
            inputs: The inputs.
            tokens: What the call is to do: write so many new tokens, greedily and with a cache; by default one forward
                pass.
        """


BACKENDS = ("eager", "cuda-graph", "compile", "onnx", "onnx-int8")
"""By name; what a model is compared in comes first."""

FORWARD_ONLY = ("cuda-graph", "compile")
"""Those in which a model that generates is not run: what each token adds has another shape."""

VERSIONS = 4096
"""So many versions of one piece of code may be compiled: more than any model has layers."""


def check_backends(backends: Sequence[str], *, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse backends that are not to be had here.

    Args:
        backends: Names of `BACKENDS`.
        device: Where the models will run.
        dtype: What they compute in.

    Raises:
        UserError: One is unknown, or lacks what it needs on this machine.
    """
    for name in backends:
        if name not in BACKENDS:
            raise UserError(f"backend {name!r} is not known: --backends takes {', '.join(BACKENDS)}, with commas.")
    if "compile" in backends:
        _require_compiler(device)
    if "cuda-graph" in backends and device.type != "cuda":
        raise UserError(
            f"the backend cuda-graph runs on a GPU of NVIDIA's, and device is '{device}': give --device cuda, or leave "
            "it out of --backends."
        )
    if any(name.startswith("onnx") for name in backends):
        from bplightning.exporting.files import require_onnx  # where the libraries may be missing

        require_onnx()
        if device.type != "cpu" or dtype != torch.float32:
            raise UserError(
                f"the backend onnx runs on the processor in float32, and {device} in "
                f"{str(dtype).removeprefix('torch.')} was asked for: leave it out of --backends."
            )


def prepare(backend: str, model: PreTrainedModel, *, folder: Path) -> Bind:
    """Make a model ready to run in a backend.

    Args:
        backend: A name of `BACKENDS` that `check_backends` lets pass.
        model: The model, in evaluation mode.
        folder: A folder to make for what the backend needs on disk.
    """
    if backend.startswith("onnx"):
        return _onnx(model, folder, int8=backend == "onnx-int8")

    def bind(inputs: Mapping[str, Tensor], tokens: int | None = None) -> Callable[[], object]:
        if tokens is not None:
            return partial(generate, model, inputs, tokens=tokens)
        if backend == "cuda-graph":
            return recorded(model, inputs)
        # Each shape is compiled for itself: what is compiled for any shape is slower, and is not what is asked.
        return partial(torch.compile(model, dynamic=False) if backend == "compile" else model, **inputs)

    return bind


def generate(model: Any, inputs: Mapping[str, Tensor], *, tokens: int) -> Tensor:
    """Write greedily with a cache, in torch as it is; the model must have been told of no end of the text.

    Args:
        model: A model that generates.
        inputs: ``input_ids`` and ``attention_mask``.
        tokens: New tokens of each row.
    """
    return model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
    )


@torch.inference_mode()
def recorded(model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Callable[[], Any]:
    """A forward pass recorded as a CUDA graph, which the processor launches at once and not kernel by kernel.

    Args:
        model: The model, in evaluation mode on a GPU.
        inputs: Its inputs there; what is in them when the call is made is computed.

    Returns:
        The call; it gives the same outputs each time, written anew.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are chosen and memory is found before anything is recorded
        for _ in range(3):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = model(**inputs)

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


@contextmanager
def compiling() -> Iterator[None]:
    """What is compiled within is compiled in full, and forgotten afterwards.

    torch.compile gives up after a few versions of the same code, in silence, and runs it as it is; uneven layers, two
    models and several shapes are so many versions.
    """
    with torch._dynamo.config.patch(recompile_limit=VERSIONS, accumulated_recompile_limit=VERSIONS):
        try:
            yield
        finally:
            torch.compiler.reset()


def _onnx(model: PreTrainedModel, folder: Path, *, int8: bool) -> Bind:
    from bplightning.exporting.export import export_onnx, exported_parts
    from bplightning.exporting.files import onnx_calls

    folder.mkdir()
    calls = onnx_calls(export_onnx(model, folder, int8=int8))
    if model.can_generate():
        parts = exported_parts(model)
        return lambda inputs, tokens=None: partial(parts.generate, calls, inputs, tokens=tokens)
    return lambda inputs, tokens=None: partial(calls["model"], dict(inputs))


def _require_compiler(device: torch.device) -> None:
    """Compile something small: what torch needs for that differs by device and version, and only trying tells."""
    try:
        with warnings.catch_warnings(), torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", "dynamo_pgo force disabled", UserWarning)  # as it shall be
            torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(8, device=device))
    except RuntimeError as error:  # as torch's own errors are
        reason = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"the backend compile does not work on this machine ({type(error).__name__}: {reason}): install a C++ "
            "compiler that torch.compile finds (g++, or what CXX names), or leave it out of --backends."
        ) from error
    finally:
        torch.compiler.reset()
