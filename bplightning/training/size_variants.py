"""Size variants: models saved before training ends, by a strategy that prunes to one size after another.

Each is saved when the strategy reports it as ready, along with the final model, and evaluated and timed with it at the
end.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedModel

from bplightning.compaction.blending import is_blended
from bplightning.compaction.equivalence import require_equal
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import save_compact
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import save_task

FOLDER = "compact-"
"""Prefix of a folder's name, before the model's name."""

MARKER = ".kept"
"""File that marks such a folder; it holds the folder's name."""


def keep(hardened: PreTrainedModel, task: Task, run: Path, name: str) -> None:
    """Save the compact model of a hardened one in a run's folder; an existing one of this name is replaced.

    Args:
        hardened: The model, without masks.
        task: Its task.
        run: The run's folder.
        name: Name of the model.

    Raises:
        UserError: The compact model, or the one loaded from its folder, does not compute the same.
    """
    folder = run / f"{FOLDER}{name}"
    if is_blended(hardened):
        rank_zero_warn(
            f"the model {name!r} is ready, but not wholly simplified yet, so it is not saved: end simplification "
            "earlier, with its warm-ups."
        )
        return
    small: PreTrainedModel = compact(hardened)  # type: ignore[assignment]
    require_equal(hardened, small, comparison_inputs(small), what=f"the compact model {name!r}")
    if _is_kept(folder):  # from a process that was stopped before its next checkpoint
        shutil.rmtree(folder)
    elif folder.exists():
        rank_zero_warn(f"{str(folder)!r} exists and was not written by a run, so the model {name!r} is not saved.")
        return

    def complete(inside: Path) -> None:
        save_task(task, inside)
        (inside / MARKER).write_text(folder.name, encoding="utf-8")

    save_compact(small, folder, task.processor, complete=complete)
    rank_zero_info(f"The model {name!r} is ready: {folder}")


def folders(run: Path) -> list[Path]:
    """The folders of the models that a run saved, without the user's own folders of such a name."""
    return sorted(path for path in run.glob(f"{FOLDER}*") if _is_kept(path))


def _is_kept(folder: Path) -> bool:
    """Whether a run wrote the folder under its current name; a copy made by the user does not count."""
    marker = folder / MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == folder.name
