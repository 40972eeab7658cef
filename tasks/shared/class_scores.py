"""Scores by class, and which class was taken for which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bplightning.tasks.shared.class_labels import MULTI, REGRESSION, Labels

MOST = 50
"""Most classes that a report lists, the most frequent ones."""


def classes_of(labels: Labels, rows: Tensor) -> dict[str, Any] | None:
    """The report's ``classes`` of one set of examples; `None` for a regression.

    Args:
        labels: What is predicted; `K` outputs.
        rows: As `bplightning.tasks.shared.label_scores.scores_of` takes them.

    >>> from bplightning.tasks.shared.class_labels import SINGLE
    >>> rows = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [3.0, 1.0, 1.0]])
    >>> classes_of(Labels(SINGLE, ("bad", "good")), rows)["confusion"]
    [[1, 0], [1, 1]]
    """
    if labels.kind == REGRESSION:
        return None
    count = len(labels.names)
    confusion_KK = None
    if labels.kind == MULTI:
        predicted_NK, actual_NK = rows[:, :count] > 0, rows[:, count:] > 0.5
    else:
        predicted_N, actual_N = rows[:, :count].argmax(dim=1), rows[:, count].long()
        confusion_KK = torch.bincount(actual_N * count + predicted_N, minlength=count**2).view(count, count)
        predicted_NK, actual_NK = (torch.nn.functional.one_hot(each, count).bool() for each in (predicted_N, actual_N))
    right_K, predicted_K, actual_K = ((predicted_NK & actual_NK).sum(0), predicted_NK.sum(0), actual_NK.sum(0))
    shown = sorted(actual_K.argsort(descending=True, stable=True)[:MOST].tolist())
    scores = [
        {
            "name": str(labels.names[place]),
            "examples": int(actual_K[place]),
            "precision": _share(right_K[place], predicted_K[place]),
            "recall": _share(right_K[place], actual_K[place]),
            "f1": _share(2 * right_K[place], predicted_K[place] + actual_K[place]),
        }
        for place in shown
    ]
    table = None if confusion_KK is None else confusion_KK[shown][:, shown].tolist()
    return {"scores": scores, "confusion": table}


def _share(part: Tensor, whole: Tensor) -> float | None:
    return 100 * float(part) / float(whole) if whole else None
