"""Histograms of learned scores during training: one per role at each validation, in ``scores.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from bplightning.contracts.strategy import PruningStrategy

SCORES_FILE = "scores.jsonl"
"""The file, next to ``metrics.csv``; one line per validation."""

BINS = 40
"""Bars of a histogram, of equal width from the lowest score of a role to the highest."""


class Histogram(TypedDict):
    """Scores of one role; each entry of a mask has one score: a block, a unit, a head or a weight."""

    low: float
    high: float
    pruned: list[int]
    kept: list[int]


class Scores(TypedDict):
    """One line of the file."""

    step: int
    roles: dict[str, Histogram]


class ScoreHistory(Callback):
    """Writes the histograms; every `PruningModule` adds it. Without scores, or without a logger, nothing is written.

    Scores are counted on the device, during validation, when training waits anyway.
    """

    def __init__(self) -> None:
        self._file: Path | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a line, if the validation is part of training."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        module: Any = pl_module
        folder = trainer.log_dir  # asked on all ranks, since the first sends it to the others
        if not trainer.is_global_zero or not trainer.loggers or folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        roles = histograms(module.strategy)
        if roles:
            self._append(Path(folder) / SCORES_FILE, Scores(step=trainer.global_step, roles=roles))

    def _append(self, file: Path, line: Scores) -> None:
        if self._file != file:
            self._file = file
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file() and not file.read_bytes().endswith(b"\n"):  # a killed process left half a line
                before = file.read_bytes()
                file.write_bytes(before[: before.rfind(b"\n") + 1])
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


@torch.no_grad()
def histograms(strategy: PruningStrategy) -> dict[str, Histogram]:
    """Role to the histogram of its current scores; empty where no mask has scores.

    Args:
        strategy: The strategy, with its masks.
    """
    scores: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for mask in strategy.all_masks:
        if mask.scores is not None:
            scores.setdefault(mask.role, []).append((mask.scores.detach().float(), mask.kept))
    return {role: _histogram(pairs) for role, pairs in scores.items()}


def _histogram(pairs: list[tuple[Tensor, Tensor]]) -> Histogram:
    """Histogram of scores ``(R, C)`` and grids ``(R, C)``, mask by mask, so that scores are not copied."""
    ends = torch.stack([torch.stack(scores_RC.aminmax()) for scores_RC, _ in pairs])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    width = ((high - low) / BINS).clamp(min=torch.finfo(torch.float32).tiny)
    counts = torch.zeros(2 * BINS, dtype=torch.long, device=low.device)
    for scores_RC, kept_RC in pairs:
        places = ((scores_RC - low) / width).long().clamp(max=BINS - 1) + BINS * kept_RC.long()
        counts += torch.bincount(places.flatten(), minlength=2 * BINS)
    pruned, kept = counts.view(2, BINS).tolist()
    return Histogram(low=float(low), high=float(high), pruned=pruned, kept=kept)


def read_scores(file: Path) -> list[Scores]:
    """The lines of the file by step, ascending; for a step that was trained twice, the later one.

    Args:
        file: A run's ``scores.jsonl``; a missing one has no lines.
    """
    found: dict[int, Scores] = {}
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line: Scores = json.loads(text)
                found[line["step"]] = line
            except (ValueError, KeyError, TypeError):  # half a line, from a killed process
                continue
    return [found[step] for step in sorted(found)]
