"""From a trained, masked model to a compact folder and its report: the end of `fit`, and the verb `compact`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.narrow_stream import narrows_any, ordinary_norms
from bplightning.compaction.saved_models import load_saved
from bplightning.compaction.skipped_sublayers import skips_any, unskip
from bplightning.contracts.capabilities import Steered
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.files import whole_folder
from bplightning.io.run_folder import UNFINISHED_FILE, RunFolder
from bplightning.reporting.findings import StagesDone
from bplightning.reporting.model_card import CARD_FILE, model_card
from bplightning.reporting.page import PAGE_FILE, draw, write_drawn
from bplightning.reporting.report import build_report, render, save_report
from bplightning.reporting.schema import Numbers, Quantized, Report
from bplightning.stages.alignment import align
from bplightning.stages.compact_stage import Compacted, Filling, Saving, make_compact
from bplightning.stages.constant_answer import examples_answered_alike
from bplightning.stages.measured_variants import measured_variants
from bplightning.stages.request import RunRequest
from bplightning.stages.run_findings import (
    Hardened,
    differences_of,
    origin_of,
    scores_of,
    shape_of,
    sizes_of,
    snap_record,
    speed_of,
    structure_of,
)
from bplightning.stages.samples import samples_of
from bplightning.stages.stage_cache import Notes
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.ranks import rank_hashes

AS_TRAINED = Saving()
"""Precision and vocabulary of the model that was trained."""


@dataclass(frozen=True)
class Ending:
    """What the end of a run takes besides the trained module, and where it writes.

    Attributes:
        out: Folder of the compact model; it must not hold files, but where the run resumes.
        report: File of the report.
        dense: Folder of the dense baseline, or `None`.
        filling: How the compact model is refilled, if it is.
        saving: How it is saved.
        size_variants: Folders of models of other sizes that the same training left, to be evaluated and timed, too.
        at_once: Whether `out` appears only with the report, in a process that cannot be resumed.
    """

    out: Path
    report: Path
    dense: Path | None = None
    filling: Filling | None = None
    saving: Saving = AS_TRAINED
    size_variants: Sequence[Path] = ()
    at_once: bool = False


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
    notes = Notes(trainer, None if ending.at_once else ending.report.with_name(UNFINISHED_FILE), resume=request.resume)
    inside = ending.report.parent == ending.out
    with whole_folder(ending.out) if ending.at_once else nullcontext(ending.out) as out:
        done = _finished(trainer, module, replace(ending, out=out), request, notes)
        if done is None:
            return None
        found, made = done
        folder = out if inside else ending.report.parent
        _draw(found, folder, out, made, shown=ending)  # before the report, with which a run has ended
        if inside:
            save_report(found, folder / ending.report.name)
    if not inside:
        save_report(found, ending.report)
    notes.drop()
    console = Console()
    console.print(render(found))
    said = f"The compact model: {ending.out}\nThe report: {ending.report}"
    console.print(said, soft_wrap=True, highlight=False, markup=False)
    return found


def _finished(
    trainer: Trainer, module: PruningModule, ending: Ending, request: RunRequest, notes: Notes
) -> tuple[Report, Compacted] | None:
    """All but writing the report: what it says, on the first rank, and the compact model."""
    task = module.task
    task.setup("validate")
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
    small = None if request.quantize is None else _quantized(trainer, made, evaluated, request, ending, notes=notes)
    # A masked model has the dense shapes, so it stands in for a dense one wherever only shapes count.
    of_dense_shapes = computing_all(masked) if evaluated.dense is None else evaluated.dense
    variants = measured_variants(
        ending.size_variants,
        task,
        dense=of_dense_shapes,
        notes=notes,
        evaluate=lambda model, name: evaluate(trainer, task, model, prefix=name),
        measuring=trainer.is_global_zero,
    )
    if not trainer.is_global_zero:
        return None
    speed, cost = speed_of(of_dense_shapes, made, also=shape_of(hardened.snap))
    stages = StagesDone(
        distillation=module.distillation.settings(),
        simplification=module.simplification.settings(),
        alignment=hardened.aligned,
        refill=made.refilled,
        snap=snap_record(hardened.snap, evaluated.results["masked"]["metrics"]),
        quantized=small,
        portable=cost,
        size_variants=variants,
    )
    shown = {} if evaluated.dense is None else {"dense": (evaluated.dense, task)}
    found = build_report(
        origin_of(trainer, module, hardened, request),
        scores_of(
            task,
            evaluated.results,
            samples=samples_of({**shown, "compact": (made.model, made.task)}),
            alike=examples_answered_alike(made.task, made.model),
        ),
        structure_of(module, hardened, made),
        sizes_of(module, hardened, made, dense=ending.dense, out=ending.out),
        speed,
        differences_of(notes),
        stages,
    )
    return found, made


def _harden(
    trainer: Trainer, module: PruningModule, request: RunRequest, *, notes: Notes, dtype: torch.dtype | None
) -> Hardened:
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
    return Hardened(masked, snap, aligned, density_by_role, hashes)


def _evaluate_all(
    trainer: Trainer, task: Task, masked: PreTrainedModel, made: Compacted, *, dense: Path | None, notes: Notes
) -> _Evaluated:
    """Evaluate the dense model, if there is one, the masked and the compact one; all are on the device then."""
    baseline = None if dense is None else load_saved(task.load_model, dense, what="the baseline")
    models: dict[str, tuple[PreTrainedModel, Task]] = {} if baseline is None else {"dense": (baseline, task)}
    models |= {"masked": (masked, task), "compact": (made.model, made.task)}
    results = {
        name: notes.once(name, partial(evaluate, trainer, of, model, prefix=name, details=name != "masked"))
        for name, (model, of) in models.items()
    }
    for model, _ in models.values():
        nn.Module.to(model, trainer.strategy.root_device)
    return _Evaluated(baseline, results)


def _quantized(
    trainer: Trainer, made: Compacted, evaluated: _Evaluated, request: RunRequest, ending: Ending, *, notes: Notes
) -> Quantized | None:
    """The compact model in 8 bits; `None` where that cannot be made."""
    from bplightning.stages.quantization import INT8, INT8_STATIC, Gate, quantized  # its libraries are not everybody's

    reference, gate = evaluated.dense if trainer.is_global_zero else None, None
    if request.quantize == INT8_STATIC:
        keep = RunFolder(ending.report.parent).int8_static if trainer.is_global_zero else None
        gate = Gate(request.max_loss, evaluated.results["compact"]["metrics"], request.seed or 0, keep)
    of = partial(evaluate, trainer, made.task, prefix=INT8)
    try:
        return notes.once("quantized", partial(quantized, made.task, made.model, reference, evaluate=of, gate=gate))
    except UserError as error:  # what was trained is worth its report all the same
        rank_zero_warn(f"The report has nothing of {request.quantize}: {error}")
    return None


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


def _draw(report: Report, folder: Path, out: Path, made: Compacted, *, shown: Ending) -> None:
    """The page next to the report, and the card in the compact model's folder."""
    auto = made.task.auto
    card = partial(
        model_card,
        report,
        architecture=type(made.model).__name__,
        reader=type(made.model).__name__ if auto is None else auto.__name__,
    )
    write_drawn(
        folder / PAGE_FILE,
        partial(draw, report, folder),
        again=f"`bplightning report {shown.report.parent}` draws it again.",
    )
    write_drawn(out / CARD_FILE, card, again="the model is whole without it.")


def evaluate(
    trainer: Trainer,
    task: Task,
    model: nn.Module,
    *,
    prefix: str,
    strategy: PruningStrategy | None = None,
    details: bool = False,
) -> dict[str, Any]:
    """The task's metrics of a model as it is, over the whole validation set.

    Args:
        trainer: Lightning's trainer.
        task: What to evaluate on.
        model: A dense, hardened or compact model, or a masked one with its `strategy`.
        prefix: What the metrics are logged under.
        strategy: Holds the model's masks, if it has any.
        details: Whether to ask the task for `evaluation_details`, too.

    Returns:
        ``metrics``, name to value; ``settings``, what they depend on besides the model, `None` where there was no
        batch; ``details``, empty unless asked for.
    """
    module = frozen_module(task, model, prefix=prefix, strategy=strategy)
    results = trainer.validate(module, datamodule=task, verbose=False)
    values = {name.removeprefix(f"{prefix}_"): value for result in results for name, value in result.items()}
    metric = getattr(module, "metric", None)
    return {
        "metrics": values,
        "settings": None if metric is None else task.evaluation_settings(metric),
        "details": task.evaluation_details(metric) if details and metric is not None else {},
    }


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
