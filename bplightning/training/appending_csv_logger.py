"""A CSV log that a resumed run appends to."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

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
            before = file.read_text(encoding="utf-8") if file.is_file() else ""
            before = before[: before.rfind("\n") + 1]  # a killed process may have left half a line
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory .* will be deleted", UserWarning)
                writer: Any = super().experiment
            if before:
                write_whole(file, before)
                writer.metrics_keys = next(csv.reader(before.splitlines()))
        return super().experiment
