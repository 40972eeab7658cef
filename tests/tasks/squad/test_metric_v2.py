"""Exact match, F1 and best thresholds where some questions have no answer."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import Logits, all_spans, least_null_score, random_logits, step
from datasets import Dataset
from tiny_squad import windows_of

from bplightning.tasks.squad.metric import SquadMetric
from bplightning.tasks.squad.scores import best_threshold, normalise_answer, scores_v2

Data = tuple[Dataset, Dataset]
SquadV2Metric = partial(SquadMetric, null_score_diff_threshold=0.0)


@pytest.mark.parametrize(
    ("prediction", "golds", "expected_match", "expected_f1"),
    [
        ("", [], 1, 1),
        ("Nile", [], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
        ("", ["Nile"], 0, 0),
        ("a", ["the Nile"], 0, 0),
        ("a", ["the"], 1, 1),  # v1.1 says 0 for F1
        ("Nile", ["the"], 0, 0),  # a gold answer of which nothing is left is dropped: then there is none
        ("", ["Nile", "the"], 0, 0),  # and here there is another
        ("", ["..."], 1, 1),
        ("the Nile", ["Amazon", "Nile!"], 1, 1),
        ("Nile river", ["Nile"], 0, 2 / 3),
        ("Nile river", ["the", "Nile"], 0, 2 / 3),
    ],
)
def test_scores_by_hand(prediction: str, golds: list[str], expected_match: float, expected_f1: float) -> None:
    assert scores_v2(prediction=prediction, golds=golds) == (expected_match, pytest.approx(expected_f1))


@pytest.mark.parametrize(
    ("rows", "expected"),  # of each example: score, whether predicted, whether it has an answer, no-answer score
    [
        ([(1, 1, 1, 3.0), (0, 1, 0, 5.0)], (100, 3.0)),
        ([(0, 1, 1, 3.0), (0, 1, 0, 5.0)], (50, 0.0)),  # answering nothing is best, and the threshold is 0 then
        ([(0, 1, 0, -5.0), (1, 1, 1, 3.0)], (50, 0.0)),  # a draw: not better than answering nothing
        ([(0, 1, 0, -5.0), (1, 1, 1, 3.0), (1, 1, 1, 4.0)], (200 / 3, 4.0)),
        ([(1, 1, 1, -2.0), (0, 1, 1, 1.0), (0, 1, 0, 2.0)], (200 / 3, -2.0)),  # the first of equally good ones
        ([(1, 1, 1, 2.0), (0, 1, 0, 2.0)], (100, 2.0)),  # one at a time, though no threshold parts them
        ([(0, 1, 0, 2.0), (1, 1, 1, 2.0)], (50, 0.0)),  # and in the order given
        ([(0, 0, 0, -1.0), (0.5, 1, 1, 1.0)], (75, 1.0)),  # without a prediction nothing is lost
        ([(0.25, 1, 1, 1.0)], (25, 1.0)),
        ([(0, 1, 0, 1.0)], (100, 0.0)),
    ],
)
def test_the_best_threshold_by_hand(rows: list[tuple[float, ...]], expected: tuple[float, float]) -> None:
    score, predicted, has_answer, no_answer_score = (np.array(column) for column in zip(*rows, strict=True))
    found = best_threshold(
        score_E=score.astype(float),
        predicted_E=predicted.astype(bool),
        has_answer_E=has_answer.astype(bool),
        no_answer_score_E=no_answer_score,
    )
    assert found == pytest.approx(expected)


@pytest.fixture
def many(some_unanswerable: list[dict[str, Any]], bert_folder: str, tmp_path: Path) -> Data:
    rows = [row | {"id": f"{row['id']}-{copy}"} for copy in range(5) for row in some_unanswerable]
    return windows_of(rows, bert_folder, tmp_path)


def lean_to_gold(features: Dataset, *, seed: int) -> Logits:
    """Random logits that lean to what the labels say, CLS where a window has no answer, more or less."""
    logits = random_logits(len(features), seed=seed)
    lean = 12 * torch.rand(len(features), generator=torch.Generator().manual_seed(seed))
    for values, name in zip(logits, ("start_positions", "end_positions"), strict=True):
        values[torch.arange(len(features)), torch.tensor(features[name][:])] += lean
    return logits


def fed(metric: SquadMetric, rows: list[int], logits: Logits) -> SquadMetric:
    metric.update(*step(metric.features, rows, logits))
    return metric


def values_of(metric: SquadMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def overlap(prediction: str, gold: str) -> float:
    ours, theirs = normalise_answer(prediction).split(), normalise_answer(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum(min(count, Counter(theirs)[word]) for word, count in Counter(ours).items())
    return 2 * shared / (len(ours) + len(theirs))


def by_brute_force(data: Data, logits: Logits, *, width: int, threshold: float) -> dict[str, float]:
    """All the values, from every span of every window."""
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(data[0]):
        (start, end), score = next(iter(all_spans(data[1], index, logits, width=width).items()))
        golds = [text for text in row["answers"]["text"] if normalise_answer(text)] or [""]
        raw = row["context"][start:end]
        ahead = least_null_score(data[1], index, logits) - score
        final = "" if ahead > threshold else raw
        entry: dict[str, Any] = {"ahead": ahead, "raw": raw, "group": "HasAns" if row["answers"]["text"] else "NoAns"}
        for kind, text in (("raw", raw), ("final", final)):
            entry[f"{kind}_exact"] = float(normalise_answer(text) in [normalise_answer(gold) for gold in golds])
            entry[f"{kind}_f1"] = max(overlap(text, gold) for gold in golds)
        rows.append(entry)

    def mean(values: list[float]) -> float:
        return 100 * sum(values) / len(values)

    expected = {
        "exact_match": mean([row["final_exact"] for row in rows]),
        "f1": mean([row["final_f1"] for row in rows]),
    }
    for group in {row["group"] for row in rows}:
        for name in ("exact", "f1"):
            expected[f"{group}_{name}"] = mean([row[f"final_{name}"] for row in rows if row["group"] == group])
    # With random scores no two are equal, so a threshold at each of them, or above none, is every cut there is.
    for name in ("exact", "f1"):
        outcomes = []
        for cut in [None, *sorted(row["ahead"] for row in rows)]:
            answered = [cut is not None and row["ahead"] <= cut for row in rows]
            kept = [
                row[f"raw_{name}"] if answers else float(row["group"] == "NoAns")
                for row, answers in zip(rows, answered, strict=True)
            ]
            outcomes.append((mean(kept), 0.0 if cut is None else cut))
        best = max(total for total, _ in outcomes)
        expected[f"best_{name}"] = best
        expected[f"best_{name}_thresh"] = next(cut for total, cut in outcomes if total > best - 1e-9)
    return expected


@pytest.mark.parametrize("threshold", [0.0, 6.5, -1000.0])
@pytest.mark.parametrize("seed", range(3))
def test_all_values_are_those_of_brute_force(many: Data, seed: int, threshold: float) -> None:
    logits = lean_to_gold(many[1], seed=seed)
    metric = SquadV2Metric(
        examples=many[0], features=many[1], max_answer_length=12, null_score_diff_threshold=threshold
    )
    order = torch.randperm(len(many[1]), generator=torch.Generator().manual_seed(seed)).tolist()
    fed(metric, order, logits)
    fed(metric, order[:7], logits)  # a sampler repeats
    values = values_of(metric)
    assert len(values) == 10
    assert values == pytest.approx(by_brute_force(many, logits, width=12, threshold=threshold), abs=1e-4)
    assert values["best_f1"] > max(values["f1"], 40)  # a third has no answer: more than no answer to anything is worth
    assert (values["HasAns_f1"], values["NoAns_f1"]) == (0, 100) if threshold < 0 else 0 < values["HasAns_f1"] < 100


@pytest.mark.parametrize("name", ["exact", "f1"])
def test_the_best_threshold_taken_as_the_threshold_gives_the_best_score(many: Data, name: str) -> None:
    for seed in range(5):
        logits = lean_to_gold(many[1], seed=seed)
        rows = list(range(len(many[1])))
        values = values_of(fed(SquadV2Metric(examples=many[0], features=many[1]), rows, logits))
        threshold = values[f"best_{name}_thresh"]
        again = SquadV2Metric(examples=many[0], features=many[1], null_score_diff_threshold=threshold)
        reached = values_of(fed(again, rows, logits))[{"exact": "exact_match", "f1": "f1"}[name]]
        assert reached == pytest.approx(values[f"best_{name}"])


def test_a_group_without_examples_is_left_out(data_v2: Data) -> None:
    examples, features = data_v2
    logits = lean_to_gold(features, seed=0)

    def names(*indices: int) -> set[str]:
        rows = [row for row, index in enumerate(features["example_index"]) if index in indices]
        return set(values_of(fed(SquadV2Metric(examples=examples, features=features), rows, logits)))

    always = {"exact_match", "f1", "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"}
    assert names(0, 3) == always | {"HasAns_exact", "HasAns_f1"}
    assert names(4, 5) == always | {"NoAns_exact", "NoAns_f1"}
    assert names(0, 5) == always | {"HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"}


def test_predictions_are_empty_where_no_answer_is_ahead(data_v2: Data) -> None:
    examples, features = data_v2
    logits = lean_to_gold(features, seed=1)
    rows = list(range(len(features)))
    for threshold in (-1000.0, 0.0, 1000.0):
        metric = SquadV2Metric(examples=examples, features=features, null_score_diff_threshold=threshold)
        texts = fed(metric, rows, logits).predictions()
        assert list(texts) == examples["id"][:]
        assert ("" in texts.values()) == (threshold < 1000)
        assert any(texts.values()) == (threshold > -1000)


def test_ranks_add_up(data_v2: Data) -> None:
    examples, features = data_v2
    logits = lean_to_gold(features, seed=2)
    rows = list(range(len(features)))
    ranks = [SquadV2Metric(examples=examples, features=features) for _ in range(2)]
    fed(ranks[0], rows[::2], logits)
    fed(ranks[1], [*rows[1::2], rows[0]], logits)  # a distributed sampler repeats to make ranks equally long
    ranks[0].merge_state(ranks[1])
    whole = fed(SquadV2Metric(examples=examples, features=features), rows, logits)
    assert values_of(ranks[0]) == values_of(whole)


def test_version_1_knows_nothing_of_it(data: Data) -> None:
    logits = lean_to_gold(data[1], seed=0)
    logits[0][:, 0] += 100  # no answer is far ahead
    metric = fed(SquadMetric(examples=data[0], features=data[1]), list(range(len(data[1]))), logits)
    assert set(metric.compute()) == {"exact_match", "f1"}
    assert all(metric.predictions().values())
