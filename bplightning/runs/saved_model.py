"""A saved model by its path: the folder of a model, a run's folder, or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.saved_models import load_saved
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import load_task
from bplightning.distillation.load_finetuned import require_embedded
from bplightning.errors import UserError
from bplightning.io.run_folder import find_model, run_of
from bplightning.plugins import TASKS, load


def read_model(model: str | Path, task: str | None = None) -> tuple[Task, nn.Module]:
    """A saved model and its task.

    Args:
        model: As `find_model` has it.
        task: Short name or class path of the task, where a model's folder does not say it.

    Returns:
        The task, and the model in evaluation mode; the masks of a checkpoint are zeros in its weights.

    Raises:
        UserError: There is no such model, it is damaged, or its task is not available.
    """
    path = find_model(model)
    if not (path / "config.json").is_file():
        from bplightning.runs.reading import load_run  # it stands on the command line

        wanted = None if task is None else load(TASKS, task, typed=True)  # then the run's file may name it, too
        run, checkpoint = (run_of(path), path) if path.is_file() else (path, None)
        module = load_run(run, checkpoint)
        if wanted not in (None, type(module.task)):
            raise UserError(
                f"task is {task!r}, but the task of {str(path)!r} is set by its run's config.yaml: leave it out."
            )
        return module.task, module.harden().eval()
    found = load_task(path, task)
    read: PreTrainedModel = load_saved(found.load_model, path, what="the model")
    if found.tokenizer is not None:
        require_embedded(read, found.tokenizer, name=path)
    return found, read.eval()
