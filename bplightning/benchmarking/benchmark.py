"""Timing a model side by side with the dense one on this machine: a grid of shapes, in one or several backends.

Legend: `B` rows of a batch, `L` tokens of each row, `N` new tokens of each row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bplightning.benchmarking.backends import FORWARD_ONLY, check_backends, compiling, generate, prepare
from bplightning.benchmarking.models import Candidate, find_candidates, fitted
from bplightning.benchmarking.rows import Variant, by_work, rows, settled
from bplightning.benchmarking.schema import SCHEMA_VERSION, Benchmark, BenchmarkedModel, Row, Settings, Work
from bplightning.compaction.example_inputs import random_inputs
from bplightning.compaction.loading import DTYPES
from bplightning.errors import UserError
from bplightning.io.progress_bar import OnProgress, no_progress
from bplightning.io.provenance import now, versions
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.measuring.timing import INTERVAL_ROUNDS, Times, side_by_side


@dataclass(frozen=True)
class BenchmarkSettings:
    """How models are timed.

    Args:
        shapes: `B` and `L` of each shape.
        new_tokens: `N`, 2 or more, for models that generate.
        backends: Names of `bplightning.benchmarking.backends.BACKENDS`; the dense model in eager is always timed.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: Precision of the models, a key of `bplightning.compaction.loading.DTYPES`.
        threads: CPU threads, 1 or more; by default torch's own number.
        tolerance: A ratio is settled when half of its 95 % confidence interval is at most this fraction of it.
        seconds: Most time spent on one shape, without compiling; slow models take longer, for six rounds.

    Raises:
        UserError: A setting is out of range.
    """

    shapes: Sequence[tuple[int, int]] = measure.DEFAULT_SHAPES
    new_tokens: int = 32
    backends: Sequence[str] = ("eager",)
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    tolerance: float = 0.02
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if not self.shapes or any(size < 1 for shape in self.shapes for size in shape):
            raise UserError(f"shapes are {list(self.shapes)}; give at least one, with rows and tokens of 1 or more.")
        threads = 1 if self.threads is None else self.threads
        for name, value, least in (("new_tokens", self.new_tokens, 2), ("threads", threads, 1)):
            if value < least:
                raise UserError(f"{name} is {value}; it must be {least} or more.")
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance is {self.tolerance}; it must lie between 0 and 1, such as 0.02 for 2 %.")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds is {self.seconds}; it must be more than 0.")


USUAL = BenchmarkSettings()
"""The settings where the user gives none."""


def benchmark(
    folder: str,
    against: str | None = None,
    settings: BenchmarkSettings = USUAL,
    *,
    on_progress: OnProgress = no_progress,
    command: str = "",
) -> Benchmark:
    """Time a model side by side with the dense one.

    Args:
        folder: Folder of a model, dense or compact, or of a run, whose ``compact/`` is timed.
        against: Folder of the dense model; by default the baseline of the run, if `folder` is a run with a baseline.
        settings: How they are timed.
        on_progress: Is told of progress.
        command: The command that does this, for the document.

    Returns:
        The document; `bplightning.benchmarking.table.render` draws it.

    Raises:
        UserError: A model is missing or damaged, the two are not comparable, or the device or a backend is not
            available.
    """
    place, precision, backends = device_named(settings.device), DTYPES[settings.dtype], settings.backends
    candidates = find_candidates(folder, against)
    if candidates[0].kind.can_generate() and (unfit := [each for each in backends if each in FORWARD_ONLY]):
        raise UserError(
            f"{folder!r} generates text, which {' and '.join(unfit)} cannot time, but --backends is "
            f"{','.join(backends)}: leave {' and '.join(unfit)} out."
        )
    check_backends(backends, device=place, dtype=precision)
    models = {each.name: each.load(dtype=precision, device=place) for each in candidates}
    # Before anything is timed: an unsupported architecture is refused here.
    described = {each.name: _described(each, models[each.name]) for each in candidates}
    vocabulary = min((each.vocabulary for each in candidates if each.vocabulary is not None), default=None)
    used, changed = fitted(list(models.values()), settings.shapes, new_tokens=settings.new_tokens)
    with cpu_threads(settings.threads):
        found = _rows(models, used, settings, vocabulary=vocabulary, on_progress=on_progress)
        machine = measure.machine(place)
    speedups = [each for row in found for each in (row["speedup"], row["speedup_over_eager"]) if each is not None]
    return Benchmark(
        schema_version=SCHEMA_VERSION,
        date=now(),
        command=command,
        reference=candidates[0].name,
        models=described,
        settings=Settings(
            device=settings.device,
            dtype=settings.dtype,
            backends=list(dict.fromkeys(backend for _, backend in _variants(models, backends))),
            tolerance=settings.tolerance,
            seconds=settings.seconds,
            changed=changed,
        ),
        settled=all(each["settled"] for each in speedups),
        rows=found,
        versions=versions() | ({"onnxruntime": metadata.version("onnxruntime")} if _runs_onnx(backends) else {}),
        machine=machine,
    )


def _variants(models: Mapping[str, PreTrainedModel], backends: Sequence[str]) -> list[Variant]:
    """What is timed: the reference, which is the first model, in eager, and each model in each backend."""
    return list(dict.fromkeys([(next(iter(models)), "eager"), *((name, each) for each in backends for name in models)]))


def _rows(
    models: Mapping[str, PreTrainedModel],
    shapes: Sequence[tuple[int, int]],
    settings: BenchmarkSettings,
    *,
    vocabulary: int | None,
    on_progress: OnProgress,
) -> list[Row]:
    """Count, prepare, and time all shapes, the first model being the reference."""
    reference, new_tokens = next(iter(models)), settings.new_tokens
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        on_progress(0, "counting FLOPs")  # runs each model at each shape, so a lack of memory shows now
        inputs = {shape: random_inputs(models[reference], *shape, vocabulary=vocabulary) for shape in shapes}
        flops = {
            shape: {name: _flops(model, inputs[shape], shape, new_tokens) for name, model in models.items()}
            for shape in shapes
        }
        bound = {}
        for name, backend in _variants(models, settings.backends):
            on_progress(0, f"preparing {name} in {backend}")
            bound[name, backend] = prepare(backend, models[name], folder=Path(scratch) / f"{name}-{backend}")
        for index, shape in enumerate(shapes):
            calls: dict[tuple[Work, Variant], Callable[[], object]] = {
                (work, variant): bind(inputs[shape], tokens)
                for variant, bind in bound.items()
                for work, tokens in _works(models[variant[0]], new_tokens).items()
            }
            part = partial(_part, on_progress, index, shapes, settings.seconds)
            times = by_work(_times(calls, settings, reference=reference, part=part), new_tokens=new_tokens)
            tolerance = settings.tolerance
            found += rows(
                times, flops=flops[shape], shape=shape, new_tokens=new_tokens, reference=reference, tolerance=tolerance
            )
    return found


def _part(on_progress: OnProgress, index: int, shapes: Sequence[tuple[int, int]], seconds: float, spent: float) -> None:
    """Tell of progress after `spent` of a shape's `seconds`."""
    on_progress((index + min(1.0, spent / seconds)) / len(shapes), measure.shape_name(*shapes[index]))


def _times(
    calls: Mapping[tuple[Work, Variant], Callable[[], object]],
    settings: BenchmarkSettings,
    *,
    reference: str,
    part: Callable[[float], None],
) -> Mapping[tuple[Work, Variant], Times]:
    """Time the calls of one shape side by side, until their ratios are settled or the time is spent."""

    def enough(so_far: Mapping[tuple[Work, Variant], Times]) -> bool:
        works = by_work(so_far, new_tokens=settings.new_tokens)
        return settled(works, reference=reference, tolerance=settings.tolerance)

    part(0)
    with torch.inference_mode(), compiling() if "compile" in settings.backends else nullcontext():
        for call in calls.values():
            call()  # may compile, which is not part of `seconds`
        return side_by_side(calls, seconds=settings.seconds, min_rounds=INTERVAL_ROUNDS, between=part, enough=enough)


def device_named(name: str) -> torch.device:
    """The device of a name.

    Raises:
        UserError: There is no GPU.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but torch finds no GPU here: give --device cpu.")
    return device


def _works(model: PreTrainedModel, new_tokens: int) -> dict[Work, int | None]:
    """The work that is timed for a model, with the number of tokens that it generates; `None` for a forward pass."""
    if not model.can_generate():
        return {"forward": None}
    return {"first_token": 1, "generation": new_tokens}


def _flops(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], shape: tuple[int, int], new_tokens: int
) -> dict[Work, int]:
    """Floating-point operations of each kind of work, counted over the calls that are timed."""
    counts: dict[Work, int] = {}
    try:
        for work, tokens in _works(model, new_tokens).items():
            call = measure.forward if tokens is None else partial(generate, tokens=tokens)
            counts[work] = measure.flops(model, inputs, call=call)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"{measure.shape_name(*shape)} does not fit into the memory of {model.device}: leave it out."
        ) from error
    if "generation" in counts:
        counts["decoding"] = (counts["generation"] - counts["first_token"]) // (new_tokens - 1)
    return counts


def _described(candidate: Candidate, model: PreTrainedModel) -> BenchmarkedModel:
    return BenchmarkedModel(
        path=candidate.path,
        class_name=type(model).__name__,
        parameters=measure.parameters(model, PrunableLayout.of(model)),
        bytes_on_disk=measure.bytes_on_disk(candidate.path) if Path(candidate.path).is_dir() else None,
    )


def _runs_onnx(backends: Sequence[str]) -> bool:
    return any(name.startswith("onnx") for name in backends)


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Use this many CPU threads; `None` for the current number."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
