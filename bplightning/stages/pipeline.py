"""From training to a compact model and its report: what `fit` does around `Trainer.fit`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.suitability import require_by_training
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import save_task
from bplightning.distillation.distillation import BASELINE
from bplightning.distillation.load_finetuned import load_fitting
from bplightning.distillation.teachers import load_readable
from bplightning.errors import UserError
from bplightning.reporting.report import Report, load_report
from bplightning.stages.alignment import Alignment, require_possible
from bplightning.stages.compact_stage import Filling
from bplightning.stages.finishing import AS_PRUNED, finish
from bplightning.stages.refill import Refill
from bplightning.stages.refill import refill as fine_tune
from bplightning.training.checkpoint_files import find_checkpoint, folder_of, read_checkpoint, require_same_weights
from bplightning.training.kept_checkpoints import LAST, LastCheckpoint
from bplightning.training.module import PruningModule
from bplightning.training.ranks import require_supported
from bplightning.training.size_variants import folders

LIGHTNINGS_NAMES = ("last", "best", "hpc", "registry")
"""What `Trainer.fit` takes beside a checkpoint's path."""


def fit(
    trainer: Trainer,
    module: PruningModule,
    task: Task,
    *,
    baseline: str = "none",
    start: str = "pretrained",
    alignment: Alignment = AS_PRUNED,
    refill: Refill | None = None,
    quantize: str | None = None,
    stage_trainer: Callable[[Path, int | None], Trainer] | None = None,
    resume: bool = False,
    **fit_arguments: Any,
) -> Report | None:
    """Train and prune, then compact, refill, evaluate and report.

    The run's folder, the logger's or else the trainer's root, gets ``compact/``, ``report.json``, with a baseline
    trained here ``baseline/``, and with a refill ``refill/``.

    Args:
        trainer: Lightning's trainer.
        module: The task and the strategy together.
        task: The task, as the trainer's data.
        baseline: The dense model to compare with: ``train`` to fine-tune one first with the same settings, ``none``, or
            the folder of a saved one.
        start: What pruning starts from: ``pretrained``, the task's model as it is, or ``baseline``, the fine-tuned one
            where there is one.
        alignment: Which of the removed feed-forward units are put back, for widths that suit the hardware; by default
            none.
        refill: How to fine-tune the compact model; by default it is left as it is.
        quantize: ``int8`` to evaluate and time the compact model in 8 bits, too; by default it is not.
        stage_trainer: From a folder and a number of epochs, `None` for the trainer's own, to the trainer that trains
            there; needed for a baseline of ``train`` and for a refill.
        resume: Whether to go on from what the trainer's folder holds of a run with the same settings: finished stages
            are not repeated, the one that was interrupted goes on from its last checkpoint. Where the whole run is
            finished, its report is read.
        **fit_arguments: Passed on to `Trainer.fit`, for example `ckpt_path`. A run that goes on from a checkpoint takes
            the baseline that the interrupted run had trained.

    Returns:
        The report; `None` on every rank but the first, and for a ``fast_dev_run``.

    Raises:
        UserError: The strategy prunes without training only, or nothing can be put back of what it removes, the
            baseline is no such folder, the checkpoint cannot be read or is of another run, the run's folder cannot be
            written or holds a compact model already, or a compaction was refused.
    """
    require_supported(trainer)
    require_by_training(module.strategy)
    require_possible(alignment, module.strategy)
    if start not in ("pretrained", "baseline"):
        raise UserError(f"start is {start!r}; it must be 'pretrained', the task's model, or 'baseline', the dense one.")
    if start == "baseline" and baseline == "none":
        raise UserError(
            "start is 'baseline', but there is none: give baseline 'train' or a folder, or leave start out."
        )
    if refill is not None and not refill.max_epochs:
        refill = None
    if quantize is not None:
        from bplightning.stages.quantization import require_quantizable  # its libraries are not everybody's

        require_quantizable(task, quantize)
    for what, wanted in (("baseline is 'train'", baseline == "train"), ("there is to be a refill", refill is not None)):
        if wanted and stage_trainer is None:
            raise UserError(f"{what}, but no stage_trainer was given to train it with: give one.")
    dense = None if baseline in ("none", "train") else Path(baseline)
    if module.distillation.teacher == BASELINE and baseline == "none":
        raise UserError(
            "the teacher is 'baseline', but there is none: give baseline 'train' or a folder, or another teacher."
        )
    run = folder_of(trainer)
    if resume and (run / "report.json").is_file():
        rank_zero_info(f"The run {str(run)!r} has ended, nothing is left to do: its report.json is there.")
        report = load_report(run / "report.json")
        if quantize is not None and report["quantized"] is None:
            rank_zero_warn(
                f"The report has nothing of {quantize}, and a run that has ended is not evaluated again: `bplightning "
                f"export {run} OUT --quantize {quantize}` makes the files, and `bplightning benchmark {run} --backends "
                f"onnx-{quantize}` times them."
            )
        return report if trainer.is_global_zero else None
    if dense is not None:
        require_loads(task, dense)
    if module.distillation.teacher not in (None, BASELINE):  # a useless one is refused before a baseline is trained
        load_readable(module.distillation.teacher, task)
    if resume and fit_arguments.get("ckpt_path") is None:
        fit_arguments["ckpt_path"] = find_checkpoint(run / "checkpoints")
    there = [run / "compact"] if (run / "compact").exists() else []
    if fit_arguments.get("ckpt_path") is None:  # a run that goes on may have kept models
        there += folders(run)
    if not resume and there:
        raise UserError(
            f"{str(there[0])!r} is there already: choose another trainer.default_root_dir, or a logger that "
            "numbers its runs."
        )
    require_writable(run)
    # A `fast_dev_run` has no folder of its own, and leaves nothing.
    with tempfile.TemporaryDirectory() if trainer.fast_dev_run else nullcontext(run) as stages:  # type: ignore[attr-defined]
        checkpoint, place = _file_of(fit_arguments.get("ckpt_path")), Path(stages) / "baseline" / "model"
        if baseline == "train" and resume and place.is_dir():
            dense = place
        elif baseline == "train" and checkpoint is not None:
            earlier = _run_of(checkpoint) / "baseline" / "model"
            dense = earlier if earlier.is_dir() else None
        if checkpoint is not None:  # a useless one is refused before a baseline is trained
            saved = read_checkpoint(checkpoint, weights_only=fit_arguments.get("weights_only") is not False, mmap=True)
            _start_from(dense if start == "baseline" else None, module)
            with isolate_rng():
                module.configure_model()
            require_same_weights(saved, module, path=checkpoint, training=True)
        if stage_trainer is not None and baseline == "train":
            for logger in trainer.loggers:
                _ = getattr(logger, "experiment", None)  # a logger makes its folder now, while that is empty
            if dense is not None:
                _copy_whole(dense, place, what="dense baseline")
            else:
                with isolate_rng():  # the pruned run is the same with and without a baseline before it
                    dense = train_baseline(stage_trainer(Path(stages) / "baseline", None), module, place, resume=resume)
        if module.distillation.teacher == BASELINE:
            assert dense is not None
            module.distillation.teacher = str(dense)
        if checkpoint is None:
            _start_from(dense if start == "baseline" else None, module)
        with isolate_rng():  # a refill is the same whether this process has pruned or found that done
            trainer.fit(module, datamodule=task, **fit_arguments)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    run, filling = folder_of(trainer), None
    if checkpoint is not None:
        for kept in folders(_run_of(checkpoint)):
            _copy_whole(kept, run / kept.name, what=kept.name)
    if refill is not None and stage_trainer is not None:

        def fill(small: PreTrainedModel) -> PreTrainedModel:
            return fine_tune(stage_trainer(run / "refill", refill.max_epochs), module, small, refill, resume=resume)

        filling = Filling(refill, module.learning_rate, fill)

    return finish(
        trainer,
        module,
        task,
        out=run / "compact",
        report=run / "report.json",
        dense=dense,
        alignment=alignment,
        filling=filling,
        quantize=quantize is not None,
        family=trainer.strategy.broadcast(folders(run)),
        resume=resume,
    )


def train_baseline(trainer: Trainer, module: PruningModule, folder: Path, *, resume: bool = False) -> Path:
    """Fine-tune the task's model with the settings of `module` but no pruning, and save it.

    Args:
        trainer: A trainer of its own.
        module: The module whose task and settings to take.
        folder: Where to save.
        resume: Whether to go on from a checkpoint that the trainer's folder may hold.

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
        activation_checkpointing=module.activation_checkpointing,
    )
    checkpoints = folder_of(trainer) / "checkpoints"
    trainer.fit(dense, datamodule=module.task, ckpt_path=find_checkpoint(checkpoints) if resume else None)
    if trainer.is_global_zero:
        save_dense(module.task, dense.model, folder)
        if any(isinstance(callback, LastCheckpoint) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            (checkpoints / LAST).unlink(missing_ok=True)  # three times the model's size, and of no use any more
    trainer.strategy.barrier()
    return Path(trainer.strategy.broadcast(str(folder)))


def save_dense(task: Task, model: PreTrainedModel, folder: Path) -> None:
    """Save a task's dense model with all that prediction needs; the folder appears when it is whole."""
    part = folder.with_name(f".{folder.name}.part")  # a resumed run relies on it
    model.save_pretrained(part)
    task.processor.save_pretrained(part)
    save_task(task, part)
    part.rename(folder)


def _start_from(dense: Path | None, module: PruningModule) -> None:
    """Let pruning start from a dense model's folder, if there is one."""
    if dense is not None:
        module.model = module.task.load_model(dense)


def _file_of(ckpt_path: Any) -> Path | None:
    """The file that `Trainer.fit` is to go on from; `None` for none, and for what is no path on this machine."""
    if ckpt_path is None or "://" in str(ckpt_path) or str(ckpt_path).partition(":")[0] in LIGHTNINGS_NAMES:
        return None
    return Path(ckpt_path)


def _run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of, if it lies where runs have theirs."""
    return checkpoint.absolute().parent.parent  # of a file at the root that is the root


def require_loads(task: Task, folder: Path) -> None:
    """Refuse a baseline that cannot be read now, before anything is computed."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"baseline {str(folder)!r} is not the folder of a saved model (it has no config.json): give such a folder, "
            "'train' to fine-tune one first, or 'none'."
        )
    load_fitting(task, folder, what="baseline")


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written now, before anything is computed."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    reason = None if there.is_dir() else "is a file"
    if reason is None and not os.access(there, os.W_OK | os.X_OK):
        reason = "is not writable"
    if reason is None and getattr(rank_zero_only, "rank", 0) == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"takes no folder: {error.strerror}"
    if reason is not None:
        raise UserError(
            f"the run's folder {str(folder)!r} cannot be written ({str(there)!r} {reason}): choose another "
            "trainer.default_root_dir."
        )


@rank_zero_only
def _copy_whole(source: Path, target: Path, *, what: str) -> None:
    """Copy a folder; it appears when it is whole."""
    if target.exists():  # a run that goes on in its own folder
        return
    rank_zero_info(f"Taking the {what} that the interrupted run had trained, {source}.")
    part = target.with_name(f".{target.name}.part")
    shutil.copytree(source, part, dirs_exist_ok=True)
    part.rename(target)
