"""Answers of a saved model: `predict` from Python, and `predict_file` behind the command line's verb."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bplightning.errors import UserError
from bplightning.io.json_lines import JsonLinesWriter
from bplightning.io.quiet import quiet_loggers, quiet_transformers
from bplightning.io.records import STANDARD, Placed, read_records
from bplightning.io.run_folder import find_model
from bplightning.runs.saved_model import read_model
from bplightning.training.module import frozen_module

CHUNK = 1000
"""Records that are read, answered and written at a time, so that any number of them fits into memory."""


def predict(
    model: str | Path,
    records: dict[str, Any] | Iterable[dict[str, Any]],
    *,
    task: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
) -> list[dict[str, Any]]:
    """The answers of a saved model.

    Args:
        model: A model's folder, dense or compact; a run's folder, which stands for its ``compact/``, or else for its
            newest checkpoint; or a checkpoint file in a run's folder.
        records: What to answer, as the task reads it, one record or several; for question answering dictionaries with
            ``question`` and ``context``.
        task: Short name or class path of the task, where the model's folder does not say it.
        batch_size: Rows of a batch; by default the task's own.
        accelerator: Lightning's name of what to compute on: ``auto``, ``cpu``, ``gpu``.

    Returns:
        One dictionary a record, in their order; a list of one for a single record.

    Raises:
        UserError: There is no such model, it is damaged, or a record is not what the task reads.
    """
    return list(predict_iter(model, records, task=task, batch_size=batch_size, accelerator=accelerator))


def predict_iter(
    model: str | Path,
    records: dict[str, Any] | Iterable[dict[str, Any]],
    *,
    task: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
) -> Iterator[dict[str, Any]]:
    """`predict` for any number of records: it reads and answers 1,000 at a time.

    Args:
        model: As `predict` has it.
        records: As `predict` has it.
        task: As `predict` has it.
        batch_size: As `predict` has it.
        accelerator: As `predict` has it.

    Yields:
        One dictionary a record, in their order.

    Raises:
        UserError: As `predict` has it.
    """
    predictor = Predictor(model, task=task, batch_size=batch_size, accelerator=accelerator)
    given = [records] if isinstance(records, dict) else records
    placed = ((f"record {index}", record) for index, record in enumerate(given))
    for chunk in _chunks(placed):
        yield from predictor.answer(chunk)


class Predictor:
    """A saved model, read once and ready to answer as often as it is called.

    Args:
        model: A model's folder, a run's folder or a checkpoint file, as `predict` has it.
        task: Short name or class path of the task, where the model's folder does not say it.
        batch_size: Rows of a batch, 1 or more; by default the task's own.
        accelerator: Lightning's name of what to compute on: ``auto``, ``cpu``, ``gpu``.

    Raises:
        UserError: There is no such model, it is damaged, or there is no such accelerator.
    """

    def __init__(
        self,
        model: str | Path,
        task: str | None = None,
        batch_size: int | None = None,
        accelerator: str = "auto",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be 1 or more.")
        with _quiet():
            try:
                self._trainer = Trainer(
                    accelerator=accelerator,
                    devices=1,
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
            except (MisconfigurationException, ValueError, ImportError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(f"accelerator {accelerator!r} is not available ({reason}): try 'auto'.") from error
            self.task, network = read_model(model, task)
        if batch_size is not None:
            if not hasattr(self.task, "eval_batch_size"):
                raise UserError(f"batch_size is {batch_size}, but task {type(self.task).__name__} has its own only.")
            self.task.eval_batch_size = batch_size
        self._module = frozen_module(self.task, network, prefix="predict")

    def __call__(self, records: dict[str, Any] | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers to a handful of records, in their order; a list of one for a single record.

        Args:
            records: What to answer, as the task reads it, one record or several.

        Raises:
            UserError: A record is not what the task reads.
        """
        given = [records] if isinstance(records, dict) else records
        return self.answer([(f"record {index}", record) for index, record in enumerate(given)])

    def answer(self, placed: Sequence[Placed]) -> list[dict[str, Any]]:
        """The answers to records that come from a named place.

        Args:
            placed: Where each record stands, for messages, and the record.

        Raises:
            UserError: A record is not what the task reads; the message says where it stands.
        """
        for place, record in placed:
            if not isinstance(record, dict):
                raise UserError(f"{place} is a {type(record).__name__}; it must be a dictionary.")
        if not placed:
            return []
        self.task.read_inputs([record for _, record in placed], [place for place, _ in placed])
        with _quiet(), _interruptible():
            batches = self._trainer.predict(self._module, dataloaders=self.task.predict_dataloader())
        answers = self.task.predictions(batches or [])
        if len(answers) != len(placed):
            raise RuntimeError(f"{type(self.task).__name__} gave {len(answers)} answers to {len(placed)} records")
        return answers


def predict_file(
    model: str,
    *,
    input_path: str = STANDARD,
    output_path: str = STANDARD,
    task: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
    overwrite: bool = False,
) -> None:
    """Answer JSON lines with JSON lines, as many at a time as fit into memory.

    Args:
        model: As `predict` has it.
        input_path: File of JSON lines, or with one JSON list; ``-`` for standard input.
        output_path: File to write, which appears whole or not at all; ``-`` for standard output.
        task: As `predict` has it.
        batch_size: As `predict` has it.
        accelerator: As `predict` has it.
        overwrite: Whether an output that is there already is replaced.

    Raises:
        UserError: As `predict` has it, or the input or output cannot be read or written.
    """
    find_model(model)  # now, before anything is typed into standard input
    show = (sys.stderr.isatty() or output_path != STANDARD) and not (output_path == STANDARD and sys.stdout.isatty())
    if input_path == STANDARD and sys.stdin.isatty():
        sys.stderr.write("Reading JSON lines from the terminal; Ctrl-D ends them.\n")
    with JsonLinesWriter(output_path, overwrite=overwrite) as output, redirect_stdout(sys.stderr):
        chunks = _chunks(read_records(input_path))
        first = next(chunks)  # before the model: bad input is said at once
        predictor = Predictor(model, task=task, batch_size=batch_size, accelerator=accelerator)
        start, done = time.monotonic(), 0
        for chunk in chain([first], chunks):
            output.write(predictor.answer(chunk))
            done += len(chunk)
            if show:
                rate = done / (time.monotonic() - start)
                sys.stderr.write(f"{done} records answered, {rate:.0f} a second{_END[sys.stderr.isatty()]}")
                sys.stderr.flush()
        if show and sys.stderr.isatty():
            sys.stderr.write("\n")


_END = {True: "\r", False: "\n"}
"""What follows a line of progress, on a terminal or not."""


def _chunks(placed: Iterable[Placed]) -> Iterator[list[Placed]]:
    iterator = iter(placed)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars, and the messages of Lightning when it starts and stops."""
    lightning = quiet_loggers("lightning.pytorch.utilities.rank_zero")
    with quiet_transformers(warns=True), lightning, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers", UserWarning)
        warnings.filterwarnings("ignore", "GPU available but not used", UserWarning)
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays Ctrl-C: Lightning makes it the end of the process, and deaf to any further one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
