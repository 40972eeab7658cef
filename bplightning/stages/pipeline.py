"""From training to a compact model and its report: what `fit` does around `Trainer.fit`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from bplightning.compaction.saved_models import load_saved
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.suitability import require_by_training
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import save_task
from bplightning.distillation.distillation import BASELINE
from bplightning.distillation.load_finetuned import load_fitting
from bplightning.distillation.teachers import load_readable
from bplightning.errors import UserError
from bplightning.io.files import copy_folder, whole_folder
from bplightning.io.run_folder import RunFolder, run_of
from bplightning.reporting.report import Report, load_report
from bplightning.stages.alignment import require_possible
from bplightning.stages.compact_stage import Filling
from bplightning.stages.finishing import Ending, finish
from bplightning.stages.refill import refill
from bplightning.stages.request import PLAIN, RunRequest
from bplightning.training.checkpoint_files import find_checkpoint, folder_of, read_checkpoint, require_same_weights
from bplightning.training.kept_checkpoints import LAST, LastCheckpoint
from bplightning.training.module import PruningModule
from bplightning.training.other_callbacks import require_no_finder, require_no_rivals
from bplightning.training.ranks import require_supported
from bplightning.training.size_variants import folders

LIGHTNINGS_NAMES = ("last", "best", "hpc", "registry")
"""What `Trainer.fit` takes beside a checkpoint's path."""

StageTrainer = Callable[[Path, int | None], Trainer]
"""From a folder and a number of epochs, `None` for the run's own, to the trainer that trains there."""


def fit(
    trainer: Trainer,
    module: PruningModule,
    request: RunRequest = PLAIN,
    *,
    stage_trainer: StageTrainer | None = None,
) -> Report | None:
    """Train and prune, then compact, refill, evaluate and report.

    The run's folder, the logger's or else the trainer's root, gets ``compact/``, ``report.json``, with a baseline
    trained here ``baseline/``, and with a refill ``refill/``. A run that resumes repeats no finished stage, and
    continues the one that was interrupted from its last checkpoint; of one that is finished the report is read. A run
    that continues from another's checkpoint takes the baseline that the other one had trained.

    Args:
        trainer: Lightning's trainer.
        module: The task, which is the trainer's data, and the strategy together.
        request: What is asked for.
        stage_trainer: Makes the trainers of other stages; needed for a baseline of ``train`` and for a refill.

    Returns:
        The report; `None` on every rank but the first, and for a ``fast_dev_run``.

    Raises:
        UserError: The strategy prunes without training only, or nothing can be put back of what it removes, the
            baseline is no such folder, the checkpoint cannot be read or is of another run, the run's folder cannot be
            written or holds a compact model already, or a compaction was refused.
    """
    require_supported(trainer)
    require_no_rivals(trainer, module.strategy)
    require_no_finder(trainer)
    _require_consistent(module, request, stage_trainer)
    run = RunFolder(folder_of(trainer))
    if request.resume and run.report.is_file():
        return _ended(trainer, run, request)
    _require_readable(module, request)
    if request.resume and request.ckpt_path is None:
        request = replace(request, ckpt_path=find_checkpoint(run.checkpoints))
    if not request.resume:
        _require_free(run, continues=request.ckpt_path is not None)
    require_writable(run.path)
    rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]  # which has no folder of its own, and leaves nothing
    with tempfile.TemporaryDirectory() if rehearsal else nullcontext(run.path) as folder:
        dense = _prepare(trainer, module, request, RunFolder(Path(folder)), stage_trainer)
        with isolate_rng():  # a refill is the same whether this process has pruned or found that done
            ckpt_path, weights_only = request.ckpt_path, request.weights_only
            trainer.fit(module, datamodule=module.task, ckpt_path=ckpt_path, weights_only=weights_only)
    if rehearsal:
        return None
    run = RunFolder(folder_of(trainer))
    if (checkpoint := _file_of(request.ckpt_path)) is not None:
        for kept in folders(run_of(checkpoint)):
            _copy_whole(kept, run.path / kept.name, what=kept.name)
    return finish(
        trainer,
        module,
        Ending(
            out=run.compact,
            report=run.report,
            dense=dense,
            filling=_filling(module, request, run, stage_trainer),
            size_variants=trainer.strategy.broadcast(folders(run.path)),
        ),
        request,
    )


def _require_consistent(module: PruningModule, request: RunRequest, stage_trainer: StageTrainer | None) -> None:
    """Refuse a request whose parts do not go together, before anything is read.

    Raises:
        UserError: What does not, and the remedy.
    """
    require_by_training(module.strategy)
    require_possible(request.alignment, module.strategy)
    start, baseline = request.start, request.baseline
    if start not in ("pretrained", "baseline"):
        raise UserError(f"start is {start!r}; it must be 'pretrained', the task's model, or 'baseline', the dense one.")
    if start == "baseline" and baseline == "none":
        raise UserError("--start baseline needs a baseline: pass --baseline train or a folder, or leave --start out.")
    if request.quantize is not None:
        from bplightning.stages.quantization import require_quantizable  # its libraries are not everybody's

        require_quantizable(module.task, request.quantize, max_loss=request.max_loss)
    wanted = {"baseline is 'train'": baseline == "train", "there is to be a refill": request.refill is not None}
    for what, is_wanted in wanted.items():
        if is_wanted and stage_trainer is None:
            raise UserError(f"{what}, but no stage_trainer was given to train it with: give one.")
    if module.task.needs_teacher:
        _require_teacher(module, baseline)
    if module.distillation.teacher == BASELINE and baseline == "none":
        raise UserError(
            "--distillation.teacher baseline needs a baseline: pass --baseline train or a folder, or give another."
        )


def _require_teacher(module: PruningModule, baseline: str) -> None:
    """Refuse to learn from data that teaches nothing by itself."""
    if module.distillation.teacher is None:
        raise UserError(
            "the training data has nothing to learn from but a teacher, and there is none: give "
            "--distillation.teacher, the folder of a model, or baseline with --baseline FOLDER."
        )
    if baseline == "train":
        raise UserError(
            "baseline is 'train', and the training data has nothing to learn from but a teacher, and a baseline has "
            "none: give the folder of the unpruned model, or 'none'."
        )


def _ended(trainer: Trainer, run: RunFolder, request: RunRequest) -> Report | None:
    """The report of a run that has nothing left to do."""
    rank_zero_info(f"The run {str(run.path)!r} has ended, nothing is left to do: its report.json is there.")
    report, quantize = load_report(run.report), request.quantize
    if quantize is not None and report["quantized"] is None:
        remedy = (
            f"`bplightning export {run.path} OUT --quantize int8` makes the files, and `bplightning benchmark "
            f"{run.path} --backends onnx-int8` times them."
        )
        if quantize == "int8-static":
            remedy = f"start a new run, without --resume. Without training examples, {remedy}"
        rank_zero_warn(
            f"The report has nothing of {quantize}, and a run that has ended is not evaluated again: {remedy}"
        )
    return report if trainer.is_global_zero else None


def _require_readable(module: PruningModule, request: RunRequest) -> None:
    """Refuse a baseline or a teacher that is of no use, before one is trained."""
    if request.baseline not in ("none", "train"):
        require_loads(module.task, Path(request.baseline))
    if module.distillation.teacher not in (None, BASELINE):
        load_readable(module.distillation.teacher, module.task)


def _require_free(run: RunFolder, *, continues: bool) -> None:
    """Refuse a folder that holds a result; where a run continues, models that it kept may be there."""
    there = [run.compact] if run.compact.exists() else []
    if not continues:
        there += folders(run.path)
    if there:
        raise UserError(
            f"{str(there[0])!r} is there already: choose another trainer.default_root_dir, or a logger that "
            "numbers its runs."
        )


def _prepare(
    trainer: Trainer,
    module: PruningModule,
    request: RunRequest,
    stages: RunFolder,
    stage_trainer: StageTrainer | None,
) -> Path | None:
    """Check the checkpoint, see to the baseline, and let the module begin with what it is to begin with.

    Returns:
        The folder of the dense model, if there is one.
    """
    checkpoint, dense = _file_of(request.ckpt_path), _known_baseline(request, stages)
    if checkpoint is not None:  # a useless one is refused before a baseline is trained
        saved = read_checkpoint(checkpoint, weights_only=request.weights_only is not False, mmap=True)
        _start_from(dense if request.start == "baseline" else None, module)
        with isolate_rng():
            module.configure_model()
        require_same_weights(saved, module, path=checkpoint, training=True)
    if stage_trainer is not None and request.baseline == "train":
        for logger in trainer.loggers:
            _ = getattr(logger, "experiment", None)  # a logger makes its folder now, while that is empty
        if dense is not None:
            _copy_whole(dense, stages.baseline_model, what="dense baseline")
        else:
            with isolate_rng():  # the pruned run is the same with and without a baseline before it
                own = stage_trainer(stages.baseline, None)
                dense = train_baseline(own, module, stages.baseline_model, resume=request.resume)
    module.baseline = dense
    if checkpoint is None:
        _start_from(dense if request.start == "baseline" else None, module)
    return dense


def _known_baseline(request: RunRequest, stages: RunFolder) -> Path | None:
    """The folder of the dense model, where it need not be trained."""
    if request.baseline != "train":
        return None if request.baseline == "none" else Path(request.baseline)
    if request.resume and stages.baseline_model.is_dir():
        return stages.baseline_model
    if (checkpoint := _file_of(request.ckpt_path)) is not None:
        earlier = RunFolder(run_of(checkpoint)).baseline_model
        return earlier if earlier.is_dir() else None
    return None


def _filling(
    module: PruningModule, request: RunRequest, run: RunFolder, stage_trainer: StageTrainer | None
) -> Filling | None:
    """How the compact model is refilled, if it is to be."""
    settings = request.refill
    if settings is None or stage_trainer is None:
        return None

    def fill(small: PreTrainedModel) -> PreTrainedModel:
        return refill(stage_trainer(run.refill, settings.max_epochs), module, small, settings, resume=request.resume)

    return Filling(settings, module.learning_rate, fill)


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
    checkpoints = RunFolder(folder_of(trainer)).checkpoints
    trainer.fit(dense, datamodule=module.task, ckpt_path=find_checkpoint(checkpoints) if resume else None)
    if trainer.is_global_zero:
        save_dense(module.task, dense.model, folder)
        if any(isinstance(callback, LastCheckpoint) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            (checkpoints / LAST).unlink(missing_ok=True)  # three times the model's size, and of no use any more
    trainer.strategy.barrier()
    return Path(trainer.strategy.broadcast(str(folder)))


def save_dense(task: Task, model: PreTrainedModel, folder: Path) -> None:
    """Save a task's dense model with all that prediction needs; the folder appears when it is whole."""
    with whole_folder(folder) as part:  # a resumed run relies on it
        model.save_pretrained(part)
        task.processor.save_pretrained(part)
        save_task(task, part)


def _start_from(dense: Path | None, module: PruningModule) -> None:
    """Let pruning start from a dense model's folder, if there is one."""
    if dense is not None:
        module.model = load_saved(module.task.load_model, dense, what="the baseline")


def _file_of(ckpt_path: Any) -> Path | None:
    """The file that `Trainer.fit` is to go on from; `None` for none, and for what is no path on this machine."""
    if ckpt_path is None or "://" in str(ckpt_path) or str(ckpt_path).partition(":")[0] in LIGHTNINGS_NAMES:
        return None
    return Path(ckpt_path)


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
    with whole_folder(target) as part:
        copy_folder(source, part)
