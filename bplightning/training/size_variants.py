"""Models that are whole before training ends: a strategy that prunes to one size after another leaves a family of them.

Each is saved when the strategy says that it is ready, beside the one that training ends with, and evaluated and timed
with it at the end.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from bplightning.compaction.blending import is_blended
from bplightning.compaction.equivalence import require_equal
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import save_compact
from bplightning.contracts.task_file import save_task
from bplightning.training.checkpoint_files import folder_of
from bplightning.training.module import PruningModule
from bplightning.training.restore_units import hardened_copy

FOLDER = "compact-"
"""What a folder's name begins with, before the model's own name."""

MARKER = ".kept"
"""File in such a folder, by which it is known; it holds the folder's name."""


def keep(module: PruningModule, name: str) -> None:
    """Save the model that there would be if training ended now; one of this name that is there is replaced.

    Args:
        module: The module in training; it goes on as if nothing had been.
        name: What the model is called.

    Raises:
        UserError: The compact model, or what loads from its folder, does not compute the same.
    """
    trainer = module.trainer
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    folder = folder_of(trainer) / f"{FOLDER}{name}"  # ranks find it together
    if trainer.is_global_zero:
        with isolate_rng():
            _save(module, name, folder)
    trainer.strategy.barrier()


def _save(module: PruningModule, name: str, folder: Path) -> None:
    hardened = hardened_copy(module)
    if is_blended(hardened):
        rank_zero_warn(
            f"the model {name!r} is ready, but not wholly simplified yet, and so it is not kept: end simplification "
            "earlier, by its warm-ups."
        )
        return
    small: PreTrainedModel = compact(hardened)  # type: ignore[assignment]
    require_equal(hardened, small, comparison_inputs(small), what=f"the compact model {name!r}")
    if _is_kept(folder):  # of a process that was stopped after it, before its next checkpoint
        shutil.rmtree(folder)
    elif folder.exists():
        rank_zero_warn(f"{str(folder)!r} is in the way and not of a run, and so the model {name!r} is not kept.")
        return

    def complete(inside: Path) -> None:
        save_task(module.task, inside)
        (inside / MARKER).write_text(folder.name, encoding="utf-8")

    save_compact(small, folder, module.task.processor, complete=complete)
    rank_zero_info(f"The model {name!r} is ready: {folder}")


def folders(run: Path) -> list[Path]:
    """The folders of the models that a run kept, not others of such a name, which are the user's own."""
    return sorted(path for path in run.glob(f"{FOLDER}*") if _is_kept(path))


def _is_kept(folder: Path) -> bool:
    """Whether a run wrote it under the name that it has: a copy that a user made is theirs."""
    marker = folder / MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == folder.name
