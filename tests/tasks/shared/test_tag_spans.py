from __future__ import annotations

import itertools
import random

import pytest
import torch

from bplightning.tasks.shared.tag_spans import count_right, entities_of, mark_spans, span_scores, spans_of


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O O", []),
        ("B-a I-a O B-b", [("a", 0, 2), ("b", 3, 4)]),  # IOB2
        ("I-a I-a O I-a B-a I-a", [("a", 0, 2), ("a", 3, 4), ("a", 4, 6)]),  # IOB1: B only where two of a kind touch
        ("S-a S-a B-a I-a E-a S-b", [("a", 0, 1), ("a", 1, 2), ("a", 2, 5), ("b", 5, 6)]),  # IOBES
        ("U-a B-a M-a L-a U-b", [("a", 0, 1), ("a", 1, 4), ("b", 4, 5)]),  # BILOU and BMES
        ("O I-a I-b", [("a", 1, 2), ("b", 2, 3)]),  # a new type begins a span, whatever its prefix
        ("B-a E-a I-a", [("a", 0, 2), ("a", 2, 3)]),  # what follows an end begins anew
        ("S-a I-a E-a", [("a", 0, 1), ("a", 1, 3)]),
        ("B-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("E-a E-a", [("a", 0, 1), ("a", 1, 2)]),
        ("B-x-y I-x-y I-y", [("x-y", 0, 2), ("y", 2, 3)]),  # a type may have a dash
    ],
)
def test_spans_are_those_of_worked_examples(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans


def parts(left: str, right: str) -> bool:
    """Whether a border lies between two neighbouring words of which at least one is outside no span."""
    if "O" in (left, right) or left[2:] != right[2:]:
        return True
    return right[0] in "BS" or left[0] in "ES"


def test_every_short_sequence_is_cut_where_neighbours_part() -> None:
    """Any word outside ``O`` is in one span, and any two neighbours are in one span unless they part."""
    names = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "ab")]
    for tags in itertools.product(names, repeat=4):
        brute = [
            (tags[first][2:], first, end)
            for first, end in itertools.combinations(range(5), 2)
            if "O" not in tags[first:end]
            and not any(parts(tags[place], tags[place + 1]) for place in range(first, end - 1))
            and (first == 0 or parts(tags[first - 1], tags[first]))
            and (end == 4 or parts(tags[end - 1], tags[end]))
        ]
        assert spans_of(tags) == brute


def test_scores_are_those_of_spans_counted_one_by_one() -> None:
    rng = random.Random(0)
    names = ["O", "B-a", "I-a", "B-b", "I-b"]
    examples = [([rng.choice(names) for _ in range(9)], [rng.choice(names) for _ in range(9)]) for _ in range(40)]
    found = {(number, *span) for number, (predicted, _) in enumerate(examples) for span in spans_of(predicted)}
    wanted = {(number, *span) for number, (_, gold) in enumerate(examples) for span in spans_of(gold)}
    precision, recall = len(found & wanted) / len(found), len(found & wanted) / len(wanted)
    counts = [count_right(predicted, gold, spans=True) for predicted, gold in examples]
    scores = span_scores(torch.tensor(counts, dtype=torch.float64), spans=True)
    assert scores["precision"].item() == pytest.approx(100 * precision)
    assert scores["recall"].item() == pytest.approx(100 * recall)
    assert scores["f1"].item() == pytest.approx(200 * precision * recall / (precision + recall))
    right = sum(one == other for predicted, gold in examples for one, other in zip(predicted, gold, strict=True))
    assert scores["accuracy"].item() == pytest.approx(100 * right / 360)


def test_tags_without_prefixes_count_word_by_word() -> None:
    assert not mark_spans(["NOUN", "VERB", "B-a"])
    assert not mark_spans(["O"])
    assert count_right(["A", "A", "O", "B"], ["A", "B", "O", "O"], spans=False) == (1, 3, 2, 2, 4)
    scores = span_scores(torch.tensor([[1.0, 3, 2, 2, 4]]), spans=False)
    assert {name: round(value.item(), 6) for name, value in scores.items()} == {"f1": 40.0, "accuracy": 50.0}


def test_nothing_found_is_nought_and_no_number_is_lost() -> None:
    scores = span_scores(torch.tensor([[0.0, 0, 0, 5, 5]]), spans=True)
    assert {name: value.item() for name, value in scores.items()} == {
        "f1": 0.0,
        "accuracy": 100.0,
        "precision": 0.0,
        "recall": 0.0,
    }


@pytest.mark.parametrize("counts", [torch.zeros(0, 5), torch.zeros(2, 5)])
def test_no_example_and_no_word_are_nought(counts: torch.Tensor) -> None:
    assert {value.item() for value in span_scores(counts, spans=True).values()} == {0.0}


def test_words_without_a_tag_are_outside() -> None:
    entities = entities_of(["B-a", None, "I-a"], [0.5, 0.0, 1.0], words=["x", "y", "z"])
    assert entities == [
        {"type": "a", "text": "x", "score": 0.5, "words": [0, 1]},
        {"type": "a", "text": "z", "score": 1.0, "words": [2, 3]},
    ]
