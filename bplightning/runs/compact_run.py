"""The verb `compact`: the compact model of a run, from one of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Trainer

from bplightning.compaction.loading import DTYPES
from bplightning.compaction.vocabulary import Corpus
from bplightning.errors import UserError
from bplightning.io.files import made_parent, require_empty
from bplightning.io.run_folder import REPORT_FILE, RunFolder, baseline_of, section_as
from bplightning.reporting.schema import Report
from bplightning.runs.reading import load_run, refill_of, task_of_run
from bplightning.stages.alignment import AUTO, Alignment, require_possible
from bplightning.stages.compact_stage import Filling, Saving
from bplightning.stages.finishing import Ending, finish
from bplightning.stages.refill import refilled
from bplightning.stages.request import RunRequest
from bplightning.training.checkpoint_files import find_checkpoint


def compact_run(
    run: Path,
    out: Path,
    *,
    checkpoint: str | None = None,
    vocabulary: Path | None = None,
    dtype: str | None = None,
    multiple_of: int | str | None = None,
    portable: bool = False,
    command: str = "",
) -> Report | None:
    """Write the compact model of a run from one of its checkpoints, and ``report.json`` beside its weights.

    Args:
        run: The run's folder, with ``config.yaml`` and ``checkpoints/``.
        out: Folder to write; it must not hold files.
        checkpoint: ``best``, ``last``, or a file; by default the newest, and what a refill has made of it since.
        vocabulary: A corpus, to keep only the tokens that occur in it.
        dtype: Precision to save in, a key of `DTYPES`.
        multiple_of: As `Alignment` has it; by default as the run has it, which then measures nothing anew.
        portable: Whether it is padded with zeros to widths that config.json can say.
        command: The command that does this, for the report.

    Returns:
        The report.

    Raises:
        UserError: The folder is no run or has no such checkpoint, `out` holds files, the corpus cannot be read,
            widths cannot be so, no portable model would be smaller, or a check failed.
    """
    _require_possible(out, dtype=dtype, vocabulary=vocabulary)
    wanted = None if multiple_of is None else Alignment(multiple_of)
    refill, filled = refill_of(run), find_checkpoint(RunFolder(RunFolder(run).refill).checkpoints)
    if checkpoint is not None or filled is None:  # what a checkpoint of the pruning holds has not been refilled
        refill = None
    if refill is not None:
        _require_refilled(run, multiple_of=multiple_of)
    module, alignment = load_run(run, checkpoint), wanted or _alignment_of(run)
    require_possible(alignment, module.strategy)
    made_parent(out)
    filling = None
    if refill is not None and filled is not None:
        filling = Filling(refill, module.learning_rate, lambda small: refilled(module, small, refill, filled))
    saving = Saving(
        dtype=None if dtype is None else DTYPES[dtype],
        vocabulary=vocabulary,
        task_of=lambda folder: task_of_run(run, model=folder),
        portable=portable,
    )
    return finish(
        Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False),
        module,
        Ending(out, out / REPORT_FILE, baseline_of(run), filling=filling, saving=saving, at_once=True),
        RunRequest(command=command, alignment=alignment),
    )


def _require_possible(out: Path, *, dtype: str | None, vocabulary: Path | None) -> None:
    """Refuse what cannot be written or read, before anything is computed."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    require_empty(out)
    if vocabulary is not None:
        next(iter(Corpus(vocabulary)))


def _require_refilled(run: Path, *, multiple_of: int | str | None) -> None:
    """Refuse a run whose refill was stopped, and other widths than those that were refilled."""
    folder = RunFolder(run)
    if not folder.compact.exists() and not folder.report.exists():
        raise UserError(
            f"{str(run)!r} was stopped while its compact model was refilled: continue it with its own command and "
            "--resume true, or give --checkpoint last for the model before the refill."
        )
    if multiple_of is not None:
        raise UserError(
            f"multiple_of is {multiple_of!r}, but {str(run)!r} was refilled as it is, and weights put back now would "
            "not have been: give --checkpoint last too, for the model before the refill, or leave --multiple_of out."
        )


def _alignment_of(run: Path) -> Alignment:
    """As the run has it; what it has chosen by measurement is chosen."""
    alignment = section_as(run, "alignment", Alignment)
    if alignment.multiple_of == AUTO:
        for file in (RunFolder(run).report, RunFolder(run).unfinished):
            try:
                if file.is_file() and (found := json.loads(file.read_text(encoding="utf-8")).get("alignment")):
                    return Alignment(found["multiple_of"])
            except (ValueError, AttributeError, LookupError, TypeError) as error:
                raise UserError(
                    f"{str(file)!r} is damaged ({' '.join(str(error).split())}), and the widths that the run has "
                    "chosen stand there: give --multiple_of."
                ) from error
    return alignment
