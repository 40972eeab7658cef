"""From a trained, masked model to a compact folder and its report: the end of `fit`, and the verb `compact`."""

from __future__ import annotations

import copy
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.loading import load_saved
from bplightning.compaction.narrow_stream import narrows_any, ordinary_norms
from bplightning.compaction.skipped_sublayers import is_skipped, skips_any, unskip
from bplightning.contracts.capabilities import Steered
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.invocation import program
from bplightning.io.provenance import now, versions
from bplightning.measuring import measure
from bplightning.plugins import name_of
from bplightning.reporting.model_card import CARD_FILE, model_card
from bplightning.reporting.page import PAGE_FILE, draw, write_drawn
from bplightning.reporting.patterns import head_patterns
from bplightning.reporting.report import build_report, render, save_report
from bplightning.reporting.schema import Monitor, Numbers, Quantized, Report, Snap, Stream
from bplightning.stages.alignment import Alignment, align
from bplightning.stages.compact_stage import Compacted, Filling, Saving, make_compact
from bplightning.stages.measured_family import measured_family
from bplightning.stages.stage_cache import Notes
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.ranks import rank_hashes

GENERATED_TOKENS = 32
"""Tokens that a task which generates is timed with."""

UNFINISHED = "unfinished.json"
"""File beside a report that is not written yet, with what is known of it."""

AS_TRAINED = Saving()
"""Precision and vocabulary of the model that was trained."""

AS_PRUNED = Alignment()
"""Widths as pruning left them."""

EQUIVALENCES = ("masked_compact", "compact_reloaded")
"""Pairs of models whose logits are compared."""


def finish(
    trainer: Trainer,
    module: PruningModule,
    task: Task,
    *,
    out: Path,
    report: Path,
    dense: Path | None,
    alignment: Alignment = AS_PRUNED,
    filling: Filling | None = None,
    saving: Saving = AS_TRAINED,
    quantize: bool = False,
    family: Sequence[Path] = (),
    resume: bool = False,
) -> Report | None:
    """Align, harden, compact, check, refill, save, evaluate and measure; write the report and print its table.

    Args:
        trainer: A trainer, for its devices.
        module: The trained module.
        task: Its task.
        out: Folder of the compact model; it must not hold files, but with `resume`.
        report: File of the report.
        dense: Folder of the dense baseline, or `None`.
        alignment: Which of the removed feed-forward units are put back first.
        filling: How the compact model is refilled, if it is.
        saving: How it is saved.
        quantize: Whether it is also evaluated and timed in 8 bits, as `bplightning.stages.quantization` makes them.
        family: Folders of other models that the same training left, to be evaluated and timed, too.
        resume: Whether to go on from what a process that was stopped here has done: the compact model in `out`, and
            evaluations kept beside the report.

    Returns:
        The report, on the first rank.
    """
    task.setup("validate")
    # Beside the report; not in the model's own folder, which appears when it is whole.
    notes = Notes(trainer, None if report.parent == out else report.with_name(UNFINISHED), resume=resume)
    snap = notes.once("snap", partial(snap_of, trainer, module))

    def metrics_before(model: PreTrainedModel) -> Numbers:
        return cast(Numbers, evaluate(trainer, task, model, prefix="before_alignment")["metrics"])

    aligned = align(trainer, module, task, alignment, notes=notes, evaluate=metrics_before, dtype=saving.dtype)
    density_by_role = {role: float(value) for role, value in module.strategy.density().items() if role != "total"}
    hashes = rank_hashes(trainer, module.strategy)
    device = trainer.strategy.root_device  # where it was trained: after `fit` Lightning leaves models on the processor
    masked = module.harden().eval()
    nn.Module.to(masked, device)  # transformers' own signature of `to` is not typed
    made = make_compact(trainer, task, masked, out, filling=filling, saving=saving, notes=notes, resume=resume)
    models: dict[str, tuple[PreTrainedModel, Task]] = {"masked": (masked, task), "compact": (made.model, made.task)}
    if dense is not None:
        models = {"dense": (load_saved(task.load_model, dense, what="the baseline"), task), **models}
    evaluated = {
        name: notes.once(name, partial(evaluate, trainer, of, model, prefix=name))
        for name, (model, of) in models.items()
    }
    for model, _ in models.values():
        nn.Module.to(model, device)
    small: Quantized | None = None
    if quantize:
        from bplightning.stages.quantization import quantized  # its libraries are not everybody's

        beside = models["dense"][0] if dense is not None and trainer.is_global_zero else None
        of = partial(evaluate, trainer, made.task, prefix="int8")
        try:
            small = notes.once("quantized", partial(quantized, made.task, made.model, beside, evaluate=of))
        except UserError as error:  # what was trained is worth its report all the same
            rank_zero_warn(f"The report has nothing of int8: {error}")
    # A masked model has the dense shapes, so it stands in for a dense one wherever only shapes count.
    of_dense_shapes = models["dense"][0] if dense is not None else computing_all(masked)
    members = measured_family(
        family,
        task,
        dense=of_dense_shapes,
        notes=notes,
        evaluate=lambda model, name: evaluate(trainer, task, model, prefix=name),
        measuring=trainer.is_global_zero,
    )
    if not trainer.is_global_zero:
        return None

    measured = _measured(of_dense_shapes, made, also=_shape_of(snap))
    layout = module.layout
    assert layout is not None
    found = build_report(
        task=name_of(type(task)),
        strategy=name_of(type(module.strategy)),
        # Not the baseline that pruning may have begun from: that is a folder of the run's own.
        model=str(getattr(task, "model", None) or masked.config._name_or_path),
        metrics={name: values["metrics"] for name, values in evaluated.items()},
        monitor=Monitor(metric=task.monitor, mode=task.monitor_mode),
        data=task.data_settings() or None,
        evaluation=evaluated["compact"]["settings"],
        density_by_role=density_by_role,
        heads_by_layer=made.plan.heads,
        units_by_layer=made.plan.units,
        stream=None if (width := made.plan.stream) is None else Stream(kept=len(width.kept), total=width.total),
        skipped=[group.name for group in layout.groups if is_skipped(masked, group)],
        patterns=head_patterns(layout),
        parameters={
            "dense": measure.parameters(masked, layout),
            "masked": measure.parameters(masked, layout, nonzero=True),
            "compact": measure.parameters(made.model, layout),
        },
        vocabulary=made.vocabulary,
        dtype=str(made.model.dtype).removeprefix("torch."),
        bytes_on_disk={
            "dense": None if dense is None else measure.bytes_on_disk(dense),
            "compact": measure.bytes_on_disk(out),
        },
        **measured,
        equivalence={name: notes.kept.get(name, {}).get("absolute") for name in EQUIVALENCES},
        equivalence_relative={name: notes.kept.get(name, {}).get("relative") for name in EQUIVALENCES},
        world_size=trainer.world_size,
        mask_hashes=hashes,
        seed=int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        command=shlex.join([*program(), *sys.argv[1:]]),
        versions=versions(),
        machine=measure.machine(device),
        date=now(),
        distillation=module.distillation.settings(),
        simplification=module.simplification.settings(),
        alignment=aligned,
        refill=made.refilled,
        snap=_snap(snap, evaluated["masked"]["metrics"]),
        quantized=small,
        family=members,
    )
    _draw(found, report.parent, out, made)  # before the report, with which a run has ended
    save_report(found, report)
    notes.drop()
    console = Console()
    console.print(render(found))
    console.print(f"The compact model: {out}\nThe report: {report}", soft_wrap=True)
    return found


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


def _measured(dense: PreTrainedModel, made: Compacted, *, also: tuple[int, int] | None) -> dict[str, Any]:
    """Latency and FLOPs of a model of the dense shapes and of the compact one, as `build_report` takes them."""
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
    return {
        "flops": {name: measure.flops(model, inputs) for name, model in pair.items()},
        "flops_shape": measure.shape_name(*flops_shape),
        "latency_ms": {name: measure.median_ms(times) for name, times in latency.items()},
        "speedup": measure.speedup(latency["dense"], latency["compact"]),
    }


def evaluate(trainer: Trainer, task: Task, model: nn.Module, *, prefix: str) -> dict[str, Any]:
    """The task's metrics of a model as it is, over the whole validation set.

    Args:
        trainer: Lightning's trainer.
        task: What to evaluate on.
        model: A dense, hardened or compact model.
        prefix: What the metrics are logged under.

    Returns:
        ``metrics``, name to value; ``settings``, what they depend on beside the model, `None` where there was no batch.
    """
    module = frozen_module(task, model, prefix=prefix)
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
    prefix, module.metric_prefix = module.metric_prefix, "before_snap"
    steered.put_masks(before_snap=True)
    results = trainer.validate(module, datamodule=module.task, verbose=False)
    steered.put_masks(before_snap=False)
    module.metric_prefix = prefix
    metrics = {name.removeprefix("before_snap_"): value for result in results for name, value in result.items()}
    metrics.pop("density", None)
    return snap | {"metrics_before": metrics}


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
