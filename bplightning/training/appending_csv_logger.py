"""A CSV log that a resumed run appends to."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from bplightning.errors import UserError
from bplightning.io.files import write_whole


class AppendingCSVLogger(CSVLogger):
    """A `CSVLogger` that keeps the lines of an existing ``metrics.csv``.

    Lightning's own logger deletes the file. Steps after the last checkpoint, which are trained again, appear twice.
    """

    def _get_next_version(self) -> int:
        """The number of a new run; its folder is made right away, so that another run begun now takes the next one."""
        number = int(super()._get_next_version())
        while getattr(rank_zero_only, "rank", 0) == 0:
            try:
                Path(self.root_dir, f"version_{number}").mkdir(parents=True)
            except FileExistsError:
                number += 1
            except OSError:
                break  # a place that cannot be written is refused with a sentence of its own
            else:
                break
        return number

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, which writes after the existing lines."""
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            before = _lines(file) if file.is_file() else ""
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory .* will be deleted", UserWarning)
                writer: Any = super().experiment
            writer._rewrite_with_new_header = partial(_rewrite, file)
            if before:
                write_whole(file, before)
                writer.metrics_keys = next(csv.reader(before.splitlines()))
        return super().experiment


def _rewrite(file: Path, columns: Sequence[str]) -> None:
    """Give a log more columns; Lightning's own writer empties the file first, which a kill would leave so."""
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, table.getvalue())


def _lines(file: Path) -> str:
    """The whole lines of a log.

    Raises:
        UserError: It is damaged, and a run that resumes would continue it.
    """
    try:
        text = file.read_text(encoding="utf-8")
        text = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
        rows = csv.reader(text.splitlines(), strict=True)
        columns = next(rows, None)
        if text and ("\0" in text or not columns or any(len(row) != len(columns) for row in rows)):
            raise ValueError("its rows have not the columns of its first line")
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{str(file)!r} is damaged ({error}), and the run would continue it: remove or rename it and repeat the "
            "command; only the curves so far are lost."
        ) from error
    return text
