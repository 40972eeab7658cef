"""Backends that compute a model's forward pass: eager torch, a CUDA graph, torch.compile, ONNX Runtime.

A backend prepares a model once and binds it to the inputs of one shape, which gives a call without arguments.
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
    """Binds a prepared model to the inputs of one shape, on the model's device."""

    def __call__(self, inputs: Mapping[str, Tensor], tokens: int | None = None) -> Callable[[], object]:
        """The call that computes the inputs.

        Args:
            inputs: The inputs.
            tokens: New tokens that the call generates, greedily and with a cache; by default it is one forward pass.
        """


BACKENDS = ("eager", "cuda-graph", "compile", "onnx", "onnx-int8")
"""Names of the backends; models are compared in the first."""

FORWARD_ONLY = ("cuda-graph", "compile")
"""Backends without generation, in which every token would have another shape."""

VERSIONS = 4096
"""Most compiled versions of one piece of code: more than any model has layers."""


def check_backends(backends: Sequence[str], *, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse backends that do not work here.

    Args:
        backends: Names of `BACKENDS`.
        device: The device that the models will run on.
        dtype: Their precision.

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
            f"the backend cuda-graph needs an NVIDIA GPU, but device is '{device}': give --device cuda, or leave it "
            "out of --backends."
        )
    if any(name.startswith("onnx") for name in backends):
        from bplightning.exporting.files import require_onnx  # deferred: the libraries are optional

        require_onnx()
        if device.type != "cpu" or dtype != torch.float32:
            raise UserError(
                f"the backend onnx runs on the CPU in float32, but device and dtype are {device} and "
                f"{str(dtype).removeprefix('torch.')}: leave it out of --backends."
            )


def prepare(backend: str, model: PreTrainedModel, *, folder: Path) -> Bind:
    """Prepare a model for a backend.

    Args:
        backend: A name of `BACKENDS` that `check_backends` accepts.
        model: The model, in evaluation mode.
        folder: A folder to make for the backend's files.
    """
    if backend.startswith("onnx"):
        return _onnx(model, folder, int8=backend == "onnx-int8")

    def bind(inputs: Mapping[str, Tensor], tokens: int | None = None) -> Callable[[], object]:
        if tokens is not None:
            return partial(generate, model, inputs, tokens=tokens)
        if backend == "cuda-graph":
            return recorded(model, inputs)
        # Each shape is compiled separately, since code for any shape is slower.
        return partial(torch.compile(model, dynamic=False) if backend == "compile" else model, **inputs)

    return bind


def generate(model: Any, inputs: Mapping[str, Tensor], *, tokens: int) -> Tensor:
    """Generate greedily with a cache in eager torch; the model's configuration must name no end of the text.

    Args:
        model: A model that generates.
        inputs: ``input_ids`` and ``attention_mask``.
        tokens: New tokens in each row.
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
    """A forward pass recorded as a CUDA graph, which is launched at once instead of kernel by kernel.

    Args:
        model: The model, in evaluation mode on a GPU.
        inputs: Its inputs there; each call computes their current contents.

    Returns:
        The call; each call overwrites the same outputs.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are chosen and memory is allocated before recording
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
    """Let torch.compile compile everything, and forget it afterwards.

    After a few versions of the same code, torch.compile silently stops compiling it; uneven layers, two models and
    several shapes each need their own version.
    """
    with torch._dynamo.config.patch(recompile_limit=VERSIONS, accumulated_recompile_limit=VERSIONS):
        try:
            yield
        finally:
            torch.compiler.reset()


def _onnx(model: PreTrainedModel, folder: Path, *, int8: bool) -> Bind:
    from bplightning.exporting.files import onnx_calls
    from bplightning.exporting.variants import export_onnx, exported_parts

    folder.mkdir()
    calls = onnx_calls(export_onnx(model, folder, int8=int8))
    if model.can_generate():
        parts = exported_parts(model)
        return lambda inputs, tokens=None: partial(parts.generate, calls, inputs, tokens=tokens)
    return lambda inputs, tokens=None: partial(calls["model"], dict(inputs))


def _require_compiler(device: torch.device) -> None:
    """Try to compile something small: what torch needs for it depends on device and version."""
    try:
        with warnings.catch_warnings(), torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", "dynamo_pgo force disabled", UserWarning)  # intended
            torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(8, device=device))
    except RuntimeError as error:  # torch's errors are of this class
        reason = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"the backend compile does not work on this machine ({type(error).__name__}: {reason}): install a C++ "
            "compiler that torch.compile finds (g++, or what CXX names), or leave it out of --backends."
        ) from error
    finally:
        torch.compiler.reset()
