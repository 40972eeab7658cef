"""From logits to answers."""

from __future__ import annotations

import pytest
import torch
from brute_force import all_spans, least_null_score, random_logits, spans_of
from datasets import Dataset

from bplightning.tasks.squad.answers import Answer, Spans, best_answers, best_spans, no_answer_score, null_scores

INFINITY = float("inf")


@pytest.mark.parametrize(("width", "n_best"), [(1, 3), (4, 5), (20, 7), (3, 200)])
def test_best_spans_are_those_of_an_exhaustive_search(width: int, n_best: int) -> None:
    generator = torch.Generator().manual_seed(width)
    start, end = torch.randn(2, 5, 12, generator=generator)
    context = [(0, 12), (3, 11), (5, 6), (4, 4), (9, 12)]
    first, last, score = best_spans(
        start_logits_BL=start,
        end_logits_BL=end,
        context_start_B=torch.tensor([begin for begin, _ in context]),
        context_end_B=torch.tensor([stop for _, stop in context]),
        max_answer_length=width,
        n_best=n_best,
    )
    assert first.shape == last.shape == score.shape == (5, n_best)
    for row, (begin, stop) in enumerate(context):
        spans = [(i, j) for i in range(begin, stop) for j in range(i, min(i + width, stop))]
        spans = sorted(spans, key=lambda span: -float(start[row, span[0]] + end[row, span[1]]))[:n_best]
        assert list(zip(first[row].tolist(), last[row].tolist(), strict=True))[: len(spans)] == spans
        assert score[row, len(spans) :].eq(-INFINITY).all()


@pytest.mark.parametrize("n_best", [1, 4])
def test_answers_are_those_of_an_exhaustive_search_over_all_windows(data: tuple[Dataset, Dataset], n_best: int) -> None:
    examples, features = data
    for seed in range(5):
        logits = random_logits(len(features), seed=seed)
        rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).tolist()
        spans = spans_of(features, [*rows, *rows[:5]], logits)  # in any order, some of them twice
        found = best_answers(examples=examples, features=features, spans=spans, n_best=n_best)
        assert list(found) == [0, 1, 2, 3]
        for index, answers in found.items():
            expected = list(all_spans(features, index, logits, width=5).items())[:n_best]
            assert [((answer.start, answer.end), answer.score) for answer in answers] == expected
            context = examples[index]["context"]
            assert [answer.text for answer in answers] == [context[start:end] for (start, end), _ in expected]


def test_a_span_that_two_windows_share_counts_once(data: tuple[Dataset, Dataset]) -> None:
    examples, features = data
    table = features.to_list()
    left, right = [row for row, window in enumerate(table) if window["example_index"] == 0][:2]
    start, end = (torch.full((len(table), 32), -9.0) for _ in range(2))
    for row, place, score in (
        (left, table[left]["context_end"] - 1, 4.0),
        (right, table[right]["context_start"] + 3, 5),
    ):
        start[row, place] = end[row, place] = score
    spans = spans_of(features, [left, right], (start, end), max_answer_length=1)
    first, second, *_ = best_answers(examples=examples, features=features, spans=spans, n_best=4)[0]
    assert (first.score, second.score) == (10, -18)


def test_the_least_null_score_of_all_windows_counts(data: tuple[Dataset, Dataset]) -> None:
    features = data[1]
    logits = random_logits(len(features))
    spans = spans_of(features, list(range(len(features)))[::-1], logits)
    assert null_scores(features=features, spans=spans) == {
        index: pytest.approx(least_null_score(features, index, logits)) for index in range(4)
    }


def test_blanks_around_an_answer_are_no_part_of_it_and_a_window_may_hold_no_span() -> None:
    examples = Dataset.from_dict({"context": ["so  blue "], "id": ["1"]})
    window = {
        "example_index": [0, 0],
        "context_start": [2, 0],
        "char_start_C": [[0, 2], []],
        "char_end_C": [[2, 9], []],
    }
    features = Dataset.from_dict(window)

    def answers(*rows: int) -> list[tuple[str, int, int, float]]:
        score = torch.tensor([[7.0], [-INFINITY]])
        spans = Spans(torch.arange(2), torch.tensor([[3], [0]]), torch.tensor([[3], [0]]), score, torch.zeros(2))
        spans = Spans(*(values[list(rows)] for values in spans))
        (found,) = best_answers(examples=examples, features=features, spans=spans).values()
        return [(answer.text, answer.start, answer.end, answer.score) for answer in found]

    assert answers(0, 1) == [("blue", 4, 8, 7.0)]
    assert answers(1) == []


def test_how_far_no_answer_is_ahead_is_a_float32() -> None:
    score, null_score = torch.tensor([0.1, 7.3]).tolist()
    ahead = no_answer_score(answers=[Answer(text="Nile", start=0, end=4, score=score)], null_score=null_score)
    assert ahead == pytest.approx(7.2)
    assert ahead == float(torch.tensor(ahead)) != null_score - score  # a metric reports it as it is
