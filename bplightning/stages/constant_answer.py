"""Whether a model gives every example the same answer, as a network does that lost too much."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from bplightning.contracts.task import Task

BATCHES = 4
"""Validation batches that are looked at."""

IGNORED = -100
"""transformers' label of what counts for nothing."""

SPREAD = 0.01
"""Of a regression: its answers are the same where they spread by less than this part of what the labels do."""


def examples_answered_alike(task: Task, model: nn.Module) -> int | None:
    """As `looked_at_alike`; where a task cannot say what its model decides, a warning and `None`.

    Args:
        task: The task.
        model: The model, in evaluation mode, on the device it computes on.
    """
    try:
        return looked_at_alike(task, model)
    except Exception as error:  # any error, of a task of somebody's: the run took hours, and its report is whole
        rank_zero_warn(f"Whether the model answers at all was not looked at ({type(error).__name__}: {error}).")
        return None


@torch.no_grad()
def looked_at_alike(task: Task, model: nn.Module) -> int | None:
    """How many examples were looked at, where the model gives all of them the same answer and they have several.

    Args:
        task: The task.
        model: The model, in evaluation mode, on the device it computes on.

    Returns:
        The number; `None` where answers differ, and where all labels are one.
    """
    device = next(model.parameters()).device
    answers, labels, examples = [], [], 0
    for batch, _ in zip(task.val_dataloader(), range(BATCHES), strict=False):
        here = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        inputs = task.model_inputs(here)
        logits = task.logits(model(**inputs), here).float()
        rows = logits.flatten(0, -2)
        answers.append(rows[rows.isfinite().any(-1)].cpu())
        examples += len(next(iter(inputs.values())))
        labels.append(_labels(here))
    if examples < 2:
        return None
    found, wanted = torch.cat(answers), torch.cat(labels)
    if len(wanted.unique()) == 1:
        return None
    if found.shape[-1] == 1:
        return examples if float(found.std()) < SPREAD * float(wanted.float().std()) else None
    return examples if len(found.argmax(-1).unique()) == 1 else None


def _labels(batch: dict[str, Any]) -> Tensor:
    """The labels of a batch that count, ``(N,)``; none where the task calls them otherwise."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return torch.zeros(0)
    return labels[labels != IGNORED].flatten().cpu()
