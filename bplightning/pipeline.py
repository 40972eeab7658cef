"""From training to a compact model and its report: what `fit` does around `Trainer.fit`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning import measure
from bplightning.compaction import CompactionPlan, compact
from bplightning.equivalence import LogitDifference, made_inputs, require_equal
from bplightning.errors import UserError
from bplightning.loading import save_compact
from bplightning.module import PruningModule, frozen_module
from bplightning.plugins import name_of
from bplightning.report import build_report, now, render, save_report, versions
from bplightning.report_schema import Report
from bplightning.strategy import PruningStrategy
from bplightning.task import Task

FLOPS_SHAPE = (8, 128)
"""Rows and tokens at which the report counts floating-point operations."""


def fit(
    trainer: Trainer,
    module: PruningModule,
    task: Task,
    *,
    baseline: str = "none",
    start: str = "pretrained",
    baseline_trainer: Callable[[Path], Trainer] | None = None,
    **fit_arguments: Any,
) -> Report | None:
    """Train and prune, then compact, evaluate and report.

    The run's folder, the logger's or else the trainer's root, gets ``compact/``, ``report.json`` and, with a baseline
    trained here, ``baseline/``.

    Args:
        trainer: Lightning's trainer.
        module: The task and the strategy together.
        task: The task, as the trainer's data.
        baseline: The dense model to compare with: ``train`` to fine-tune one first with the same settings, ``none``, or
            the folder of a saved one.
        start: What pruning starts from: ``pretrained``, the task's model as it is, or ``baseline``, the fine-tuned one
            where there is one.
        baseline_trainer: From a folder to the trainer that trains the baseline there; needed for ``train``.
        **fit_arguments: Passed on to `Trainer.fit`, for example `ckpt_path`.

    Returns:
        The report; `None` on every rank but the first, and for a ``fast_dev_run``.

    Raises:
        UserError: The baseline is no such folder, the run's folder holds a compact model already, or a compaction was
            refused.
    """
    if start not in ("pretrained", "baseline"):
        raise UserError(f"start is {start!r}; it must be 'pretrained', the task's model, or 'baseline', the dense one.")
    if baseline == "train" and baseline_trainer is None:
        raise UserError("baseline is 'train', but no baseline_trainer was given to train it with: give one.")
    dense = None if baseline in ("none", "train") else Path(baseline)
    if dense is not None:
        _check_loads(task, dense)
    run = _folder(trainer)
    if (run / "compact").exists():
        raise UserError(
            f"{str(run / 'compact')!r} is there already: choose another trainer.default_root_dir, or a logger that "
            "numbers its runs."
        )
    if baseline_trainer is not None and baseline == "train":
        for logger in trainer.loggers:
            _ = getattr(logger, "experiment", None)  # a logger makes its folder now, while that is empty
        with isolate_rng():  # the pruned run is the same with and without a baseline before it
            dense = train_baseline(baseline_trainer(run / "baseline"), module, run / "baseline" / "model")
    if start == "baseline" and dense is not None:
        module.model = task.load_model(dense)
    trainer.fit(module, datamodule=task, **fit_arguments)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return finish(trainer, module, task, run=_folder(trainer), dense=dense)


def train_baseline(trainer: Trainer, module: PruningModule, folder: Path) -> Path:
    """Fine-tune the task's model with the settings of `module` but no pruning, and save it.

    Args:
        trainer: A trainer of its own.
        module: The module whose task and settings to take.
        folder: Where to save.

    Returns:
        The folder that the first rank saved to.
    """
    rank_zero_info("Training the dense baseline.")
    dense = PruningModule(
        module.task,
        PruningStrategy(),
        learning_rate=module.learning_rate,
        warmup=module.warmup,
        weight_decay=module.weight_decay,
        adam_epsilon=module.adam_epsilon,
    )
    trainer.fit(dense, datamodule=module.task)
    if trainer.is_global_zero:
        dense.model.save_pretrained(folder)
        module.task.tokenizer.save_pretrained(folder)
    trainer.strategy.barrier()
    return Path(trainer.strategy.broadcast(str(folder)))


def finish(trainer: Trainer, module: PruningModule, task: Task, *, run: Path, dense: Path | None) -> Report | None:
    """Harden, compact, check, save, evaluate and measure; write the report and print its table.

    Args:
        trainer: The trainer that trained `module`.
        module: The trained module.
        task: Its task.
        run: The run's folder.
        dense: Folder of the dense baseline, or `None`.

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
    batch = _first_batch(task, masked)
    masked_compact = require_equal(masked, small, batch, what="the compact model")
    reloaded = save_compact(small, run / "compact", task.tokenizer) if trainer.is_global_zero else None
    models: dict[str, nn.Module] = {"masked": masked, "compact": small}
    if dense is not None:
        models = {"dense": task.load_model(dense), **models}
    metrics = {name: evaluate(trainer, task, model, prefix=name) for name, model in models.items()}
    for model in models.values():
        model.to(device)
    if not trainer.is_global_zero or reloaded is None:
        return None

    # A masked model has the dense shapes, so it stands in for a dense one wherever only shapes count.
    reference = models.get("dense", masked)
    rank_zero_info("Measuring dense and compact latency side by side.")
    inputs = task.example_inputs(*FLOPS_SHAPE)
    latency = measure.latency({"dense": reference, "compact": small}, task.example_inputs)
    layout = module.layout
    assert layout is not None
    report = build_report(
        task=name_of(type(task)),
        strategy=name_of(type(module.strategy)),
        model=masked.config._name_or_path,
        metrics=metrics,
        density_by_role=density_by_role,
        heads_by_layer=plan.heads,
        units_by_layer=plan.units,
        parameters={
            "dense": measure.parameters(masked, layout),
            "masked": measure.parameters(masked, layout, nonzero=True),
            "compact": measure.parameters(small, layout),
        },
        bytes_on_disk={
            "dense": None if dense is None else measure.bytes_on_disk(dense),
            "compact": measure.bytes_on_disk(run / "compact"),
        },
        flops={"dense": measure.flops(reference, inputs), "compact": measure.flops(small, inputs)},
        flops_shape=measure.shape_name(*FLOPS_SHAPE),
        latency_ms={name: measure.median_ms(times) for name, times in latency.items()},
        speedup=measure.speedup(latency["dense"], latency["compact"]),
        equivalence={"masked_compact": masked_compact.absolute, "compact_reloaded": reloaded.absolute},
        equivalence_relative={"masked_compact": masked_compact.relative, "compact_reloaded": reloaded.relative},
        world_size=trainer.world_size,
        seed=int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        command=shlex.join([*_program(), *sys.argv[1:]]),
        versions=versions(),
        machine=measure.machine(device),
        date=now(),
    )
    save_report(report, run / "report.json")
    console = Console()
    console.print(render(report))
    console.print(f"The compact model: {run / 'compact'}\nThe report: {run / 'report.json'}", soft_wrap=True)
    return report


def compact_run(run: Path, out: Path) -> LogitDifference:
    """Write the compact model of a run, from its last checkpoint.

    Args:
        run: The run's folder, with ``config.yaml`` and ``checkpoints/``.
        out: Folder to write.

    Returns:
        The largest difference between the logits of the compact and the reloaded model.

    Raises:
        UserError: The folder is no run or has no checkpoint, `out` holds files, or a check failed.
    """
    from bplightning.runs import load_run  # it stands on the command line, which stands on this module

    module = load_run(run)
    masked = module.harden().eval()
    small: PreTrainedModel = compact(masked)  # type: ignore[assignment]
    require_equal(masked, small, made_inputs(masked), what="the compact model")
    return save_compact(small, out, module.task.tokenizer)


def evaluate(trainer: Trainer, task: Task, model: nn.Module, *, prefix: str) -> dict[str, float]:
    """The task's metrics of a model as it is, over the whole validation set.

    Args:
        trainer: Lightning's trainer.
        task: What to evaluate on.
        model: A dense, hardened or compact model.
        prefix: What the metrics are logged under.

    Returns:
        Metric name to value.
    """
    results = trainer.validate(frozen_module(task, model, prefix=prefix), datamodule=task, verbose=False)
    return {name.removeprefix(f"{prefix}_"): value for result in results for name, value in result.items()}


def _folder(trainer: Trainer) -> Path:
    """The run's folder: the logger's, or else the trainer's root."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _check_loads(task: Task, folder: Path) -> None:
    """Refuse a baseline that cannot be read now, before anything is trained."""
    try:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError("it has no config.json")
        task.load_model(folder)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"baseline {str(folder)!r} is not the folder of a saved model ({reason}): give such a folder, 'train' to "
            "fine-tune one first, or 'none'."
        ) from error


def _program() -> list[str]:
    """How this program was called, as one would type it."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return ["python", "-m", path.parent.name]
    return ["python", path.name] if path.suffix == ".py" else [path.name]


def _first_batch(task: Task, model: PreTrainedModel) -> dict[str, Tensor]:
    """The first batch of the validation set, on the model's device."""
    batch = task.model_inputs(next(iter(task.val_dataloader())))
    return {name: value.to(model.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
