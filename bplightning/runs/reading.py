"""Reading a run's folder back."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path

from lightning.pytorch.utilities.seed import isolate_rng

from bplightning.compaction.saved_models import load_saved
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.quiet import quiet_transformers
from bplightning.io.run_folder import RunFolder, baseline_of, section_as, settings_of, unreadable
from bplightning.runs.build import BuiltRun, build
from bplightning.runs.older_configuration import renewed
from bplightning.runs.training_options import PRUNE_ONLY
from bplightning.stages.refill import Refill
from bplightning.training.checkpoint_files import find_checkpoint, read_checkpoint, require_same_weights
from bplightning.training.module import PruningModule

NOT_READ = ("trainer", "seed_everything", "ckpt_path", "weights_only", "refill")
"""Sections of a configuration that say how to train; other versions and machines may not have what they name."""


def load_run(run: Path, checkpoint: str | Path | None = None) -> PruningModule:
    """The module of a run, as a checkpoint holds it.

    The run's configuration may name registered plugins, and classes that are imported already.

    Args:
        run: The run's folder, with ``config.yaml`` and ``checkpoints/``.
        checkpoint: A checkpoint file, or ``best`` or ``last``; by default the newest in ``checkpoints/``.

    Raises:
        UserError: The folder has no configuration or no such checkpoint, or is of a run of `prune`, the configuration
            is of another version, or the checkpoint is damaged or does not fit it.
    """
    if PRUNE_ONLY in settings_of(run):
        raise UserError(
            f"{str(run)!r} is a run of `prune`, which keeps no checkpoints: its model is its compact/, which "
            f"`validate --ckpt_path {RunFolder(run).compact} --task ...` evaluates."
        )
    file = checkpoint_of(run, checkpoint)
    with isolate_rng(), quiet_transformers():  # building a model draws random numbers, which are the caller's
        read = _read(run)
        module = read.module
        if read.request.start == "baseline" and (baseline := baseline_of(run)) is not None:
            module.model = load_saved(
                module.task.load_model, baseline, what="the baseline"
            )  # it may have other shapes than the task's model
        module.configure_model()
    saved = read_checkpoint(file)
    require_same_weights(saved, module, path=file, training=False)
    module.load_state_dict(saved["state_dict"])
    return module


def task_of_run(run: Path, *, model: Path) -> Task:
    """The task of a run, for another model.

    Args:
        run: The run's folder, with ``config.yaml``.
        model: Folder that takes the place of the task's `model`, its tokenizer included.

    Raises:
        UserError: As `settings_of` has it.
    """
    return _read(run, model).task


def refill_of(run: Path) -> Refill | None:
    """How a run refills its compact model; `None` where it does not."""
    refill = section_as(run, "refill", Refill)
    return refill if refill.max_epochs else None


def checkpoint_of(run: Path, checkpoint: str | Path | None = None) -> Path:
    """The checkpoint file of a run.

    Args:
        run: The run's folder.
        checkpoint: A checkpoint file; ``best``; or ``last``, the newest of all, as `None` is.

    Raises:
        UserError: There is none.
    """
    which, folder = str(checkpoint or "last"), RunFolder(run).checkpoints
    file = find_checkpoint(folder, which) if which in ("best", "last") else Path(which)
    if file is None or not file.is_file():
        there = ", ".join(sorted(str(path) for path in folder.glob("*.ckpt"))) or "none"
        raise UserError(
            f"checkpoint {which!r} is not there: give a file, 'best' or 'last', of a run that got as far as saving "
            f"one; in {str(folder)!r} there are: {there}."
        )
    return file


def _read(run: Path, model: Path | None = None) -> BuiltRun:
    """Build what a configuration says, with a task that takes `model`, if given, in place of its own."""
    kept = renewed({key: value for key, value in settings_of(run).items() if key not in NOT_READ})
    if model is not None:
        task = kept.get("task")
        if not isinstance(task, dict) or not isinstance(options := task.get("init_args") or {}, dict):
            raise unreadable(RunFolder(run).config, f"task is {task!r}, and must have a class_path and init_args")
        kept["task"] = task | {"init_args": options | {"model": str(model)}}
    try:
        return build(kept)
    except ArgumentError as error:
        raise unreadable(RunFolder(run).config, error) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise  # a fault of a plugin's own
        raise unreadable(RunFolder(run).config, error) from error
