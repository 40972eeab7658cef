"""Lightning's CSV log, which goes on where an earlier process of the same run has stopped."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger

from bplightning.io.files import write_whole


class GrowingCSVLogger(CSVLogger):
    """A `CSVLogger` whose ``metrics.csv`` keeps the lines that are in its folder already.

    Lightning's own removes the file that it finds. Steps trained again, those after the last checkpoint, stand twice.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer; the lines that were there stand before its own."""
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            before = file.read_text(encoding="utf-8") if file.is_file() else ""
            before = before[: before.rfind("\n") + 1]  # a process that was killed may have left half a line
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory .* will be deleted", UserWarning)
                writer: Any = super().experiment
            if before:
                write_whole(file, before)
                writer.metrics_keys = next(csv.reader(before.splitlines()))
        return super().experiment
