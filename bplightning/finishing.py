"""From a trained, masked model to a compact folder and its report: the end of `fit`, and the verb `compact`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning import measure
from bplightning.compaction import CompactionPlan, compact
from bplightning.equivalence import require_equal
from bplightning.errors import UserError
from bplightning.invocation import program
from bplightning.loading import load_saved, save_compact
from bplightning.module import PruningModule, frozen_module
from bplightning.plugins import name_of
from bplightning.report import build_report, now, render, save_report, versions
from bplightning.report_schema import Report, Vocabulary
from bplightning.task import Task
from bplightning.task_file import save_task
from bplightning.vocabulary import Corpus, trim_vocabulary

FLOPS_SHAPE = (8, 128)
"""Rows and tokens at which the report counts floating-point operations, where the model can take so many."""

GENERATED_TOKENS = 32
"""Tokens that a task which generates is timed with."""


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
) -> Report | None:
    """Harden, compact, check, save, evaluate and measure; write the report and print its table.

    Args:
        trainer: A trainer, for its devices.
        module: The trained module.
        task: Its task.
        out: Folder of the compact model; it must not hold files.
        report: File of the report.
        dense: Folder of the dense baseline, or `None`.
        dtype: Precision to save the compact model in; by default as it was trained.
        vocabulary: A corpus, to keep only the tokens that occur in it; `None` keeps all.
        task_of: From the folder of a model with a tokenizer of its own to the task with that; needed for `vocabulary`.

    Returns:
        The report, on the first rank.
    """
    density_by_role = {role: float(value) for role, value in module.strategy.density().items() if role != "total"}
    device = trainer.strategy.root_device  # where it was trained: after `fit` Lightning leaves models on the processor
    masked = module.harden().eval()
    nn.Module.to(masked, device)  # transformers' own signature of `to` is not typed
    plan = CompactionPlan.of(masked)
    small: PreTrainedModel = compact(masked, plan)  # type: ignore[assignment]
    task.setup("validate")
    masked_compact = require_equal(masked, small, _first_batch(task, masked), what="the compact model")
    count = 0 if task.tokenizer is None else _tokens(small)
    tokens = Vocabulary(kept=count, total=count)
    processor = task.processor
    if vocabulary is not None:
        if task.tokenizer is None:
            raise UserError("the task has no text, and so no vocabulary to trim: leave --vocabulary out.")
        trimmed = trim_vocabulary(small, task.tokenizer, Corpus(vocabulary))
        small, processor = trimmed.model, trimmed.tokenizer
        tokens["kept"] = len(trimmed.kept)
    if dtype is not None:
        nn.Module.to(small, dtype)
    reloaded = None
    if trainer.is_global_zero:
        reloaded = save_compact(small, out, processor, complete=partial(save_task, task))
    trainer.strategy.barrier()
    small_task = task
    if vocabulary is not None:
        assert task_of is not None
        small_task = task_of(out)
    models: dict[str, tuple[nn.Module, Task]] = {"masked": (masked, task), "compact": (small, small_task)}
    if dense is not None:
        models = {"dense": (load_saved(task.load_model, dense, what="the baseline"), task), **models}
    metrics, settings = {}, {}
    for name, (model, of) in models.items():
        metrics[name], settings[name] = evaluate(trainer, of, model, prefix=name)
    for model, _ in models.values():
        model.to(device)
    if not trainer.is_global_zero or reloaded is None:
        return None

    # A masked model has the dense shapes, so it stands in for a dense one wherever only shapes count.
    reference = models["dense"][0] if dense is not None else masked
    rank_zero_info("Measuring dense and compact latency side by side.")
    shapes = measure.fitting(small, measure.DEFAULT_SHAPES)
    (flops_shape,) = measure.fitting(small, [FLOPS_SHAPE])
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
        metrics=metrics,
        evaluation=settings["compact"],
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
        equivalence={"masked_compact": masked_compact.absolute, "compact_reloaded": reloaded.absolute},
        equivalence_relative={"masked_compact": masked_compact.relative, "compact_reloaded": reloaded.relative},
        world_size=trainer.world_size,
        seed=int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        command=shlex.join([*program(), *sys.argv[1:]]),
        versions=versions(),
        machine=measure.machine(device),
        date=now(),
    )
    save_report(found, report)
    console = Console()
    console.print(render(found))
    console.print(f"The compact model: {out}\nThe report: {report}", soft_wrap=True)
    return found


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Precisions a compact model can be saved in."""


def compact_run(
    run: Path, out: Path, *, checkpoint: str | None = None, vocabulary: Path | None = None, dtype: str | None = None
) -> Report | None:
    """Write the compact model of a run from one of its checkpoints, and ``report.json`` beside its weights.

    Args:
        run: The run's folder, with ``config.yaml`` and ``checkpoints/``.
        out: Folder to write; it must not hold files.
        checkpoint: ``best``, ``last``, or a file; by default the newest.
        vocabulary: A corpus, to keep only the tokens that occur in it.
        dtype: Precision to save in, a key of `DTYPES`.

    Returns:
        The report.

    Raises:
        UserError: The folder is no run or has no such checkpoint, `out` holds files, the corpus cannot be read, or a
            check failed.
    """
    from bplightning.runs import (  # it stands on the command line, which stands on this module
        baseline_of,
        load_run,
        task_of_run,
    )

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"cannot write to {str(out)!r}, which exists and is not an empty folder: name another one.")
    if vocabulary is not None:
        next(iter(Corpus(vocabulary)))  # a corpus that cannot be read is refused before anything is computed
    module = load_run(run, checkpoint)
    return finish(
        Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False),
        module,
        module.task,
        out=out,
        report=out / "report.json",
        dense=baseline_of(run),
        dtype=None if dtype is None else DTYPES[dtype],
        vocabulary=vocabulary,
        task_of=lambda folder: task_of_run(run, model=folder),
    )


def evaluate(
    trainer: Trainer, task: Task, model: nn.Module, *, prefix: str
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """The task's metrics of a model as it is, over the whole validation set.

    Args:
        trainer: Lightning's trainer.
        task: What to evaluate on.
        model: A dense, hardened or compact model.
        prefix: What the metrics are logged under.

    Returns:
        Metric name to value; and what they depend on beside the model, `None` where there was no batch.
    """
    module = frozen_module(task, model, prefix=prefix)
    results = trainer.validate(module, datamodule=task, verbose=False)
    values = {name.removeprefix(f"{prefix}_"): value for result in results for name, value in result.items()}
    return values, task.evaluation_settings(module.metric) if hasattr(module, "metric") else None


def _first_batch(task: Task, model: PreTrainedModel) -> dict[str, Tensor]:
    """The first batch of the validation set, on the model's device."""
    batch = task.model_inputs(next(iter(task.val_dataloader())))
    return {name: value.to(model.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}


def _tokens(model: PreTrainedModel) -> int:
    """Rows of the model's token embeddings."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])
