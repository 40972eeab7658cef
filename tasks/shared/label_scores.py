"""Metrics of classification and regression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import f1_score, mean_squared_error, pearson_corrcoef, spearman_corrcoef

from bplightning.tasks.shared.class_labels import MULTI, REGRESSION, SINGLE, Labels

NAMES = {
    SINGLE: ("accuracy", "f1", "matthews"),
    MULTI: ("f1", "f1_macro", "exact_match"),
    REGRESSION: ("pearson", "spearman", "mse"),
}
"""The metrics of each kind of problem."""


def scores_of(labels: Labels, rows: Tensor) -> dict[str, Tensor]:
    """The field's metrics of one set of examples, in per cent, but for ``mse``.

    Args:
        labels: What is predicted; `K` outputs.
        rows: ``(N, K + 1)``, or ``(N, 2 K)`` for several labels an example: logits, then targets.

    Returns:
        Of classes ``accuracy``, ``f1`` (of the second class where there are two, as GLUE has it, else the mean over
        classes) and ``matthews``; of several labels ``f1`` (micro), ``f1_macro`` and ``exact_match``; of a regression
        ``pearson`` and ``spearman``, and ``mse``. Where a score is not defined it is 0, as scikit-learn has it: a
        correlation with a constant, an F1 of nothing that could be found, and all scores of no example.

    >>> from bplightning.tasks.shared.class_labels import SINGLE
    >>> rows = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [3.0, 1.0, 1.0]])
    >>> {name: round(value.item(), 1) for name, value in scores_of(Labels(SINGLE, ("bad", "good")), rows).items()}
    {'accuracy': 66.7, 'f1': 66.7, 'matthews': 50.0}
    """
    if not len(rows):
        return dict.fromkeys(NAMES[labels.kind], torch.tensor(0.0))
    if labels.kind == REGRESSION:
        values, targets = rows.unbind(1)
        return correlations(values, targets) | {"mse": mean_squared_error(values, targets)}
    count = len(labels.names)
    if labels.kind == MULTI:
        predicted, targets = (rows[:, :count] > 0).int(), rows[:, count:].int()
        options: dict[str, Any] = {"task": "multilabel", "num_labels": count}
        return {
            "f1": 100 * f1_score(predicted, targets, average="micro", **options),
            "f1_macro": 100 * f1_score(predicted, targets, average="macro", **options),
            "exact_match": 100 * (predicted == targets).all(dim=1).double().mean(),
        }
    predicted, targets = rows[:, :count].argmax(dim=1), rows[:, count].long()
    if count == 2:
        f1 = f1_score((predicted == labels.positive).int(), (targets == labels.positive).int(), task="binary")
    else:
        f1 = f1_score(predicted, targets, task="multiclass", num_classes=count, average="macro")
    return {
        "accuracy": 100 * (predicted == targets).double().mean(),
        "f1": 100 * f1,
        "matthews": 100 * matthews(predicted, targets, classes=count),
    }


def correlations(values_N: Tensor, targets_N: Tensor) -> dict[str, Tensor]:
    """Pearson's and Spearman's correlation in per cent, 0 where one side is constant.

    Args:
        values_N: What is predicted, one number or more.
        targets_N: What is right.

    >>> {name: round(value.item(), 1) for name, value in correlations(torch.ones(2), torch.tensor([0.0, 1])).items()}
    {'pearson': 0.0, 'spearman': 0.0}
    """
    # Rounding makes a constant answer vary a little, and a correlation with that is noise.
    if any(side.max() - side.min() <= 1e-5 * side.abs().max() for side in (values_N, targets_N)):
        return {"pearson": torch.tensor(0.0), "spearman": torch.tensor(0.0)}
    return {
        "pearson": 100 * pearson_corrcoef(values_N, targets_N),
        "spearman": 100 * spearman_corrcoef(values_N, targets_N),
    }


def matthews(predicted_N: Tensor, targets_N: Tensor, *, classes: int) -> Tensor:
    """Matthews' coefficient of two classes or more (Gorodkin 2004), in [-1, 1].

    It is 0 where all predictions, or all targets, are of one class. This is scikit-learn's rule, and so GLUE's;
    torchmetrics has another one for two classes.

    Args:
        predicted_N: Numbers of classes.
        targets_N: The right ones.
        classes: How many there are.

    >>> matthews(torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0]), classes=2)
    tensor(0.5000, dtype=torch.float64)
    """
    pairs_KK = torch.bincount(targets_N * classes + predicted_N, minlength=classes**2).double().view(classes, classes)
    total, right = pairs_KK.sum(), pairs_KK.trace()
    found_K, there_K = pairs_KK.sum(dim=0), pairs_KK.sum(dim=1)
    spread = (total**2 - found_K.square().sum()) * (total**2 - there_K.square().sum())
    covariance = right * total - (found_K * there_K).sum()
    return covariance / spread.sqrt() if spread > 0 else torch.zeros_like(spread)
