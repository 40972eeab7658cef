"""From a trained, masked model to a compact folder and its report: the end of `fit`, and the verb `compact`."""

from __future__ import annotations

import copy
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning import measure
from bplightning.compaction import CompactionPlan, compact
from bplightning.equivalence import logit_difference, require_equal
from bplightning.errors import UserError
from bplightning.invocation import program
from bplightning.loading import load_saved, save_compact
from bplightning.module import PruningModule, frozen_module
from bplightning.notes import Notes
from bplightning.plugins import name_of
from bplightning.refill import Refill, remove_partial_heads
from bplightning.report import build_report, now, render, save_report, versions
from bplightning.report_schema import Refilled, Report, Snap, Vocabulary
from bplightning.task import Task
from bplightning.task_file import save_task
from bplightning.vocabulary import Corpus, trim_vocabulary

GENERATED_TOKENS = 32
"""Tokens that a task which generates is timed with."""

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
    dtype: torch.dtype | None = None,
    vocabulary: Path | None = None,
    task_of: Callable[[Path], Task] | None = None,
    refill: Refill | None = None,
    fill: Callable[[PreTrainedModel], PreTrainedModel] | None = None,
    resume: bool = False,
) -> Report | None:
    """Harden, compact, check, refill, save, evaluate and measure; write the report and print its table.

    Args:
        trainer: A trainer, for its devices.
        module: The trained module.
        task: Its task.
        out: Folder of the compact model; it must not hold files, but with `resume`.
        report: File of the report.
        dense: Folder of the dense baseline, or `None`.
        dtype: Precision to save the compact model in; by default as it was trained.
        vocabulary: A corpus, to keep only the tokens that occur in it; `None` keeps all.
        task_of: From the folder of a model with a tokenizer of its own to the task with that; needed for `vocabulary`.
        refill: How the compact model is refilled, if it is.
        fill: Refills it.
        resume: Whether to go on from what a process that was stopped here has done: the compact model in `out`, and
            evaluations kept beside the report.

    Returns:
        The report, on the first rank.
    """
    task.setup("validate")
    # Beside the report; not in the model's own folder, which appears when it is whole.
    notes = Notes(trainer, None if report.parent == out else report.with_name("unfinished.json"), resume=resume)
    snap = notes.once("snap", partial(snap_of, trainer, module))
    density_by_role = {role: float(value) for role, value in module.strategy.density().items() if role != "total"}
    device = trainer.strategy.root_device  # where it was trained: after `fit` Lightning leaves models on the processor
    masked = module.harden().eval()
    nn.Module.to(masked, device)  # transformers' own signature of `to` is not typed
    exact, filling = masked, None
    if refill is not None:
        filling = Refilled(
            max_epochs=refill.max_epochs,
            learning_rate=refill.learning_rate or module.learning_rate,
            hold_masks=refill.hold_masks,
            heads=refill.heads,
            heads_removed=0,
            logit_difference=None,
        )
        if refill.heads == "any":
            exact = copy.deepcopy(masked)
            filling["heads_removed"] = len(remove_partial_heads(exact))
            filling["logit_difference"] = logit_difference(masked, exact, _first_batch(task, masked)).absolute
    plan = CompactionPlan.of(exact)
    count = 0 if task.tokenizer is None else _tokens(masked)
    tokens = Vocabulary(kept=count, total=count)
    small: PreTrainedModel
    if resume and trainer.strategy.broadcast(out.exists()):
        small = load_saved(task.load_model, out, what="the compact model")
    else:
        if resume and trainer.is_global_zero:
            for part in out.parent.glob(f".{out.name}-*"):  # what a process that was killed had begun to save
                shutil.rmtree(part, ignore_errors=True)
        small = compact(exact, plan)  # type: ignore[assignment]
        equal = require_equal(exact, small, _first_batch(task, exact), what="the compact model")
        notes.once("masked_compact", lambda: asdict(equal))
        if fill is not None:
            small = fill(small)
            nn.Module.to(small, device)
        processor = task.processor
        if vocabulary is not None:
            if task.tokenizer is None:
                raise UserError("the task has no text, and so no vocabulary to trim: leave --vocabulary out.")
            trimmed = trim_vocabulary(small, task.tokenizer, Corpus(vocabulary))
            small, processor = trimmed.model, trimmed.tokenizer
            tokens["kept"] = len(trimmed.kept)
        if dtype is not None:
            nn.Module.to(small, dtype)
        if trainer.is_global_zero:
            reloaded = save_compact(small, out, processor, complete=partial(save_task, task))
            notes.once("compact_reloaded", lambda: asdict(reloaded))
        trainer.strategy.barrier()
    small_task = task
    if vocabulary is not None:
        assert task_of is not None
        small_task = task_of(out)
    models: dict[str, tuple[nn.Module, Task]] = {"masked": (masked, task), "compact": (small, small_task)}
    if dense is not None:
        models = {"dense": (load_saved(task.load_model, dense, what="the baseline"), task), **models}
    evaluated = {
        name: notes.once(name, partial(evaluate, trainer, of, model, prefix=name))
        for name, (model, of) in models.items()
    }
    for model, _ in models.values():
        model.to(device)
    if not trainer.is_global_zero:
        return None

    # A masked model has the dense shapes, so it stands in for a dense one wherever only shapes count.
    reference = models["dense"][0] if dense is not None else masked
    rank_zero_info("Measuring dense and compact latency side by side.")
    shapes = measure.fitting(small, measure.DEFAULT_SHAPES)
    (flops_shape,) = measure.fitting(small, [measure.FLOPS_SHAPE])
    inputs = small_task.example_inputs(*flops_shape)  # its tokens are among the dense model's
    pair = {"dense": reference, "compact": small}
    latency = measure.latency(pair, small_task.example_inputs, shapes)
    if (generate := small_task.example_generation(GENERATED_TOKENS)) is not None:
        for name, times in measure.latency(pair, small_task.example_inputs, shapes, call=generate).items():
            latency[name] |= {f"{shape}+{GENERATED_TOKENS}": time for shape, time in times.items()}
    layout = module.layout
    assert layout is not None
    found = build_report(
        task=name_of(type(task)),
        strategy=name_of(type(module.strategy)),
        model=masked.config._name_or_path,
        metrics={name: values["metrics"] for name, values in evaluated.items()},
        evaluation=evaluated["compact"]["settings"],
        density_by_role=density_by_role,
        heads_by_layer=plan.heads,
        units_by_layer=plan.units,
        parameters={
            "dense": measure.parameters(masked, layout),
            "masked": measure.parameters(masked, layout, nonzero=True),
            "compact": measure.parameters(small, layout),
        },
        vocabulary=tokens,
        dtype=str(small.dtype).removeprefix("torch."),
        bytes_on_disk={
            "dense": None if dense is None else measure.bytes_on_disk(dense),
            "compact": measure.bytes_on_disk(out),
        },
        flops={"dense": measure.flops(reference, inputs), "compact": measure.flops(small, inputs)},
        flops_shape=measure.shape_name(*flops_shape),
        latency_ms={name: measure.median_ms(times) for name, times in latency.items()},
        speedup=measure.speedup(latency["dense"], latency["compact"]),
        equivalence={name: notes.kept.get(name, {}).get("absolute") for name in EQUIVALENCES},
        equivalence_relative={name: notes.kept.get(name, {}).get("relative") for name in EQUIVALENCES},
        world_size=trainer.world_size,
        seed=int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        command=shlex.join([*program(), *sys.argv[1:]]),
        versions=versions(),
        machine=measure.machine(device),
        date=now(),
        distillation=module.distillation.settings(),
        simplification=module.simplification.settings(),
        refill=filling,
        snap=_snap(snap, evaluated["masked"]["metrics"]),
    )
    save_report(found, report)
    notes.drop()
    console = Console()
    console.print(render(found))
    console.print(f"The compact model: {out}\nThe report: {report}", soft_wrap=True)
    return found


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
    snap = module.strategy.snap()
    if snap is None or not snap["changed"]:
        return snap
    prefix, module.metric_prefix = module.metric_prefix, "before_snap"
    module.strategy.put_masks(before_snap=True)
    results = trainer.validate(module, datamodule=module.task, verbose=False)
    module.strategy.put_masks(before_snap=False)
    module.metric_prefix = prefix
    metrics = {name.removeprefix("before_snap_"): value for result in results for name, value in result.items()}
    metrics.pop("density", None)
    return snap | {"metrics_before": metrics}


def _snap(snap: dict[str, Any] | None, metrics: dict[str, float]) -> Snap | None:
    """A report's word of it; masks that did not change have the same metrics before."""
    return None if snap is None else cast(Snap, {"metrics_before": metrics, **snap})


def _first_batch(task: Task, model: PreTrainedModel) -> dict[str, Tensor]:
    """The first batch of the validation set, on the model's device."""
    batch = task.model_inputs(next(iter(task.val_dataloader())))
    return {name: value.to(model.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}


def _tokens(model: PreTrainedModel) -> int:
    """Rows of the model's token embeddings."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])
