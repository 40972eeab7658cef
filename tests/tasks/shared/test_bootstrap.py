"""Confidence intervals of metrics, and scores by class."""

from __future__ import annotations

import torch

from bplightning.tasks.shared.bootstrap import bootstrap
from bplightning.tasks.shared.class_labels import MULTI, REGRESSION, SINGLE, Labels
from bplightning.tasks.shared.class_scores import classes_of
from bplightning.tasks.shared.example_metric import ExampleMetric


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    rows = torch.tensor([[1.0]] * 320 + [[0.0]] * 80, dtype=torch.float64)
    ((low, high),) = bootstrap(rows, lambda rows: {"accuracy": 100 * rows.mean()}).values()
    error = 100 * (0.8 * 0.2 / 400) ** 0.5
    assert abs((high - low) / (2 * 1.96 * error) - 1) < 0.15
    assert low < 80 < high
    assert bootstrap(rows, lambda rows: {"accuracy": 100 * rows.mean()}) == {"accuracy": [low, high]}  # always the same


def test_what_does_not_vary_has_no_interval() -> None:
    assert bootstrap(torch.ones(50, 1), lambda rows: {"accuracy": 100 * rows.mean()}) == {}
    assert bootstrap(torch.ones(1, 1), lambda rows: {"accuracy": 100 * rows.mean()}) == {}


def test_an_example_that_was_seen_twice_counts_once_in_the_interval_too() -> None:
    metric = ExampleMetric(lambda outputs, batch: outputs, lambda rows: {"sum": rows.sum()})
    assert metric.intervals() == {}
    metric.update(torch.tensor([[1.0], [3.0], [1.0]]), {"index": torch.tensor([0, 1, 0])})
    metric.compute()
    assert metric.intervals() == {"sum": [2.0, 6.0]}


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    rows = torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 0.0], [3.0, 1.0, 1.0]])
    found = classes_of(Labels(SINGLE, ("bad", "good")), rows)
    assert found is not None
    assert found["confusion"] == [[2, 0], [1, 0]]
    bad, good = found["scores"]
    assert bad == {"name": "bad", "examples": 2, "precision": 200 / 3, "recall": 100.0, "f1": 80.0}
    assert good == {"name": "good", "examples": 1, "precision": None, "recall": 0.0, "f1": 0.0}


def test_several_labels_have_scores_and_no_confusion_and_a_number_has_neither() -> None:
    rows = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    found = classes_of(Labels(MULTI, ("a", "b")), rows)
    assert found is not None
    assert found["confusion"] is None
    assert [(of["precision"], of["recall"]) for of in found["scores"]] == [(50.0, 100.0), (100.0, 50.0)]
    assert classes_of(Labels(REGRESSION, ("value",)), rows[:, :2]) is None
