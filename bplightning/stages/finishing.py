"""From a trained, masked model to a compact folder and its report: the end of `fit`, and the verb `compact`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.loading import load_saved
from bplightning.compaction.narrow_stream import narrows_any, ordinary_norms
from bplightning.compaction.skipped_sublayers import is_skipped, skips_any, unskip
from bplightning.contracts.capabilities import Steered
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.provenance import now, versions
from bplightning.io.run_folder import UNFINISHED_FILE
from bplightning.measuring import measure
from bplightning.plugins import name_of
from bplightning.reporting.findings import Differences, Origin, Scores, Sizes, Speed, StagesDone, Structure
from bplightning.reporting.model_card import CARD_FILE, model_card
from bplightning.reporting.page import PAGE_FILE, draw, write_drawn
from bplightning.reporting.patterns import head_patterns
from bplightning.reporting.report import build_report, render, save_report
from bplightning.reporting.schema import Aligned, Monitor, Numbers, Quantized, Report, Snap, Stream
from bplightning.stages.alignment import align
from bplightning.stages.compact_stage import Compacted, Filling, Saving, make_compact
from bplightning.stages.measured_family import measured_family
from bplightning.stages.request import RunRequest
from bplightning.stages.stage_cache import Notes
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.ranks import rank_hashes

GENERATED_TOKENS = 32
"""Tokens that a task which generates is timed with."""

AS_TRAINED = Saving()
"""Precision and vocabulary of the model that was trained."""

EQUIVALENCES = ("masked_compact", "compact_reloaded")
"""Pairs of models whose logits are compared."""


@dataclass(frozen=True)
class Ending:
    """What the end of a run takes besides the trained module, and where it writes.

    Attributes:
        out: Folder of the compact model; it must not hold files, but where the run resumes.
        report: File of the report.
        dense: Folder of the dense baseline, or `None`.
        filling: How the compact model is refilled, if it is.
        saving: How it is saved.
        family: Folders of other models that the same training left, to be evaluated and timed, too.
    """

    out: Path
    report: Path
    dense: Path | None = None
    filling: Filling | None = None
    saving: Saving = AS_TRAINED
    family: Sequence[Path] = ()


@dataclass(frozen=True)
class _Hardened:
    """A model whose masks are zeros now, and what was only known while they were masks."""

    model: PreTrainedModel
    snap: dict[str, Any] | None
    aligned: Aligned | None
    density_by_role: dict[str, float]
    mask_hashes: list[str]


@dataclass(frozen=True)
class _Evaluated:
    """Name of each model to what the task says of it; the dense one as it was read, `None` without one."""

    dense: PreTrainedModel | None
    results: dict[str, dict[str, Any]]


def finish(trainer: Trainer, module: PruningModule, ending: Ending, request: RunRequest) -> Report | None:
    """Align, harden, compact, check, refill, save, evaluate and measure; write the report and print its table.

    Args:
        trainer: A trainer, for its devices.
        module: The trained module.
        ending: What there is besides, and where to write.
        request: What is asked for; where it resumes, the compact model that is there is taken, and evaluations kept
            next to the report.

    Returns:
        The report, on the first rank.
    """
    task = module.task
    task.setup("validate")
    # Next to the report; not in the model's own folder, which appears when it is whole.
    inside = ending.report.parent == ending.out
    notes = Notes(trainer, None if inside else ending.report.with_name(UNFINISHED_FILE), resume=request.resume)
    hardened = _harden(trainer, module, request, notes=notes, dtype=ending.saving.dtype)
    masked = hardened.model
    made = make_compact(
        trainer,
        task,
        masked,
        ending.out,
        filling=ending.filling,
        saving=ending.saving,
        notes=notes,
        resume=request.resume,
    )
    evaluated = _evaluate_all(trainer, task, masked, made, dense=ending.dense, notes=notes)
    small = None if request.quantize is None else _quantized(trainer, made, evaluated.dense, notes=notes)
    # A masked model has the dense shapes, so it stands in for a dense one wherever only shapes count.
    of_dense_shapes = computing_all(masked) if evaluated.dense is None else evaluated.dense
    members = measured_family(
        ending.family,
        task,
        dense=of_dense_shapes,
        notes=notes,
        evaluate=lambda model, name: evaluate(trainer, task, model, prefix=name),
        measuring=trainer.is_global_zero,
    )
    if not trainer.is_global_zero:
        return None
    stages = StagesDone(
        distillation=module.distillation.settings(),
        simplification=module.simplification.settings(),
        alignment=hardened.aligned,
        refill=made.refilled,
        snap=_snap(hardened.snap, evaluated.results["masked"]["metrics"]),
        quantized=small,
        family=members,
    )
    speed = _measured(of_dense_shapes, made, also=_shape_of(hardened.snap))
    found = build_report(
        _origin(trainer, module, hardened, request),
        _scores(task, evaluated.results),
        _structure(module, hardened, made),
        _sizes(module, masked, made, ending),
        speed,
        Differences(
            absolute={name: notes.kept.get(name, {}).get("absolute") for name in EQUIVALENCES},
            relative={name: notes.kept.get(name, {}).get("relative") for name in EQUIVALENCES},
        ),
        stages,
    )
    _draw(found, ending.report.parent, ending.out, made)  # before the report, with which a run has ended
    save_report(found, ending.report)
    notes.drop()
    console = Console()
    console.print(render(found))
    console.print(f"The compact model: {ending.out}\nThe report: {ending.report}", soft_wrap=True)
    return found


def _harden(
    trainer: Trainer, module: PruningModule, request: RunRequest, *, notes: Notes, dtype: torch.dtype | None
) -> _Hardened:
    """Correct and align the masks, say what they keep, and write them into the weights."""
    task = module.task
    snap = notes.once("snap", partial(snap_of, trainer, module))

    def metrics_before(model: PreTrainedModel) -> Numbers:
        return cast(Numbers, evaluate(trainer, task, model, prefix="before_alignment")["metrics"])

    aligned = align(trainer, module, task, request.alignment, notes=notes, evaluate=metrics_before, dtype=dtype)
    density_by_role = {role: float(value) for role, value in module.strategy.density().items() if role != "total"}
    hashes = rank_hashes(trainer, module.strategy)
    masked = module.harden().eval()
    # To where it was trained: after `fit` Lightning leaves models on the processor.
    nn.Module.to(masked, trainer.strategy.root_device)  # transformers' own signature of `to` is not typed
    return _Hardened(masked, snap, aligned, density_by_role, hashes)


def _evaluate_all(
    trainer: Trainer, task: Task, masked: PreTrainedModel, made: Compacted, *, dense: Path | None, notes: Notes
) -> _Evaluated:
    """Evaluate the dense model, if there is one, the masked and the compact one; all are on the device then."""
    baseline = None if dense is None else load_saved(task.load_model, dense, what="the baseline")
    models: dict[str, tuple[PreTrainedModel, Task]] = {} if baseline is None else {"dense": (baseline, task)}
    models |= {"masked": (masked, task), "compact": (made.model, made.task)}
    results = {
        name: notes.once(name, partial(evaluate, trainer, of, model, prefix=name))
        for name, (model, of) in models.items()
    }
    for model, _ in models.values():
        nn.Module.to(model, trainer.strategy.root_device)
    return _Evaluated(baseline, results)


def _quantized(trainer: Trainer, made: Compacted, dense: PreTrainedModel | None, *, notes: Notes) -> Quantized | None:
    """The compact model in 8 bits; `None` where that cannot be made."""
    from bplightning.stages.quantization import INT8, quantized  # its libraries are not everybody's

    reference = dense if trainer.is_global_zero else None
    of = partial(evaluate, trainer, made.task, prefix=INT8)
    try:
        return notes.once("quantized", partial(quantized, made.task, made.model, reference, evaluate=of))
    except UserError as error:  # what was trained is worth its report all the same
        rank_zero_warn(f"The report has nothing of int8: {error}")
    return None


# -- what the report is built of ---------------------------------------------------------------------------------------


def _origin(trainer: Trainer, module: PruningModule, hardened: _Hardened, request: RunRequest) -> Origin:
    task = module.task
    return Origin(
        task=name_of(type(task)),
        strategy=name_of(type(module.strategy)),
        # Not the baseline that pruning may have begun from: that is a folder of the run's own.
        model=str(getattr(task, "model", None) or hardened.model.config._name_or_path),
        command=request.command,
        seed=request.seed,
        date=now(),
        versions=versions(),
        machine=measure.machine(trainer.strategy.root_device),
        world_size=trainer.world_size,
        mask_hashes=hardened.mask_hashes,
    )


def _scores(task: Task, results: Mapping[str, Mapping[str, Any]]) -> Scores:
    return Scores(
        metrics={name: values["metrics"] for name, values in results.items()},
        evaluation=results["compact"]["settings"],
        monitor=Monitor(metric=task.monitor, mode=task.monitor_mode),
        data=task.data_settings() or None,
    )


def _structure(module: PruningModule, hardened: _Hardened, made: Compacted) -> Structure:
    layout, width = module.layout, made.plan.stream
    assert layout is not None
    return Structure(
        density_by_role=hardened.density_by_role,
        heads_by_layer=made.plan.heads,
        units_by_layer=made.plan.units,
        stream=None if width is None else Stream(kept=len(width.kept), total=width.total),
        skipped=[group.name for group in layout.groups if is_skipped(hardened.model, group)],
        patterns=head_patterns(layout),
    )


def _sizes(module: PruningModule, masked: PreTrainedModel, made: Compacted, ending: Ending) -> Sizes:
    layout = module.layout
    assert layout is not None
    return Sizes(
        parameters={
            "dense": measure.parameters(masked, layout),
            "masked": measure.parameters(masked, layout, nonzero=True),
            "compact": measure.parameters(made.model, layout),
        },
        vocabulary=made.vocabulary,
        dtype=str(made.model.dtype).removeprefix("torch."),
        bytes_on_disk={
            "dense": None if ending.dense is None else measure.bytes_on_disk(ending.dense),
            "compact": measure.bytes_on_disk(ending.out),
        },
    )


def computing_all(masked: PreTrainedModel) -> PreTrainedModel:
    """A hardened model as a dense one computes: nothing is skipped, and norms are ordinary; what it says is no matter.

    Args:
        masked: The hardened model, which is left as it is, and given back where it computes so already.
    """
    if not skips_any(masked) and not narrows_any(masked):
        return masked
    alike = copy.deepcopy(masked)
    unskip(alike)
    ordinary_norms(alike)
    return alike


def _draw(report: Report, folder: Path, out: Path, made: Compacted) -> None:
    """The page beside the report, and the card in the compact model's folder."""
    auto = made.task.auto
    card = partial(
        model_card,
        report,
        architecture=type(made.model).__name__,
        reader=type(made.model).__name__ if auto is None else auto.__name__,
    )
    write_drawn(
        folder / PAGE_FILE, partial(draw, report, folder), again=f"`bplightning report {folder}` draws it again."
    )
    write_drawn(out / CARD_FILE, card, again="the model is whole without it.")


def _measured(dense: PreTrainedModel, made: Compacted, *, also: tuple[int, int] | None) -> Speed:
    """Latency and FLOPs of a model of the dense shapes and of the compact one."""
    rank_zero_info("Measuring dense and compact latency side by side.")
    pair = {"dense": dense, "compact": made.model}
    make_inputs = made.task.example_inputs  # its tokens are among the dense model's
    asked = [*measure.DEFAULT_SHAPES, *([] if also is None else [also])]
    latency = measure.latency(pair, make_inputs, list(dict.fromkeys(measure.fitting(made.model, asked))))
    if (generate := made.task.example_generation(GENERATED_TOKENS)) is not None:
        shapes = measure.fitting(made.model, measure.DEFAULT_SHAPES)
        for name, times in measure.latency(pair, make_inputs, shapes, call=generate).items():
            latency[name] |= {f"{shape}+{GENERATED_TOKENS}": time for shape, time in times.items()}
    (flops_shape,) = measure.fitting(made.model, [measure.FLOPS_SHAPE])
    inputs = make_inputs(*flops_shape)
    return Speed(
        flops={name: measure.flops(model, inputs) for name, model in pair.items()},
        flops_shape=measure.shape_name(*flops_shape),
        latency_ms={name: measure.median_ms(times) for name, times in latency.items()},
        speedup=measure.speedup(latency["dense"], latency["compact"]),
    )


def evaluate(
    trainer: Trainer, task: Task, model: nn.Module, *, prefix: str, strategy: PruningStrategy | None = None
) -> dict[str, Any]:
    """The task's metrics of a model as it is, over the whole validation set.

    Args:
        trainer: Lightning's trainer.
        task: What to evaluate on.
        model: A dense, hardened or compact model, or a masked one with its `strategy`.
        prefix: What the metrics are logged under.
        strategy: Holds the model's masks, if it has any.

    Returns:
        ``metrics``, name to value; ``settings``, what they depend on beside the model, `None` where there was no batch.
    """
    module = frozen_module(task, model, prefix=prefix, strategy=strategy)
    results = trainer.validate(module, datamodule=task, verbose=False)
    values = {name.removeprefix(f"{prefix}_"): value for result in results for name, value in result.items()}
    settings = task.evaluation_settings(module.metric) if hasattr(module, "metric") else None
    return {"metrics": values, "settings": settings}


def snap_of(trainer: Trainer, module: PruningModule) -> dict[str, Any] | None:
    """What the last correction of the masks did, with the metrics of the masks before it, where that changed any.

    Args:
        trainer: Lightning's trainer.
        module: The trained module, with its masks.
    """
    steered = module.strategy.capability(Steered)
    snap = None if steered is None else steered.snap()
    if steered is None or snap is None or not snap["changed"]:
        return snap
    steered.put_masks(before_snap=True)
    before = evaluate(trainer, module.task, module.model, prefix="before_snap", strategy=module.strategy)
    steered.put_masks(before_snap=False)
    return snap | {"metrics_before": {name: value for name, value in before["metrics"].items() if name != "density"}}


def _shape_of(snap: dict[str, Any] | None) -> tuple[int, int] | None:
    """Rows and tokens that a target in time is meant for."""
    shape = None if snap is None else snap.get("shape")  # a run stopped under an earlier version may not say
    if shape is None:
        return None
    rows, tokens = map(int, shape.split("x"))
    return rows, tokens


def _snap(snap: dict[str, Any] | None, metrics: dict[str, float]) -> Snap | None:
    """A report's word of it; masks that did not change have the same metrics before."""
    return None if snap is None else cast(Snap, {"metrics_before": metrics, "shape": None, **snap})
