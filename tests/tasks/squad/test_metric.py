"""Exact match and F1, and the way from logits to answers."""

from __future__ import annotations

import random
import re
import string
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics.functional.text import squad

from bplightning.errors import UserError
from bplightning.tasks.squad.features import POSITIONS
from bplightning.tasks.squad.metric import SquadMetric
from bplightning.tasks.squad.scores import exact_match, f1, normalise_answer, words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("an  apple\ta\nday", "apple day"),
        ("theatre another a", "theatre another"),
        ("U.S.A.", "usa"),
        ("well-known 3,000", "wellknown 3000"),
        ("a-b", "ab"),  # punctuation goes before articles
        ("a—b", "—b"),  # and only ASCII's: the long dash stays, so the article before it goes
        ("“Zoë”", "“zoë”"),
        ("STRASSE ß", "strasse ß"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalisation_by_hand(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "expected_match", "expected_f1"),
    [
        ("the Nile", ["Nile"], 1, 1),
        ("Nile river", ["Nile"], 0, 2 / 3),  # precision 1/2, recall 1
        ("Nile", ["Amazon", "the river Nile"], 0, 2 / 3),  # the best of both, precision 1, recall 1/2
        ("Nile", ["the river Nile", "Nile!"], 1, 1),
        ("red red blue", ["red blue blue"], 0, 2 / 3),  # multisets: one red and one blue are shared
        ("café", ["cafe"], 0, 0),
        ("Café", ["café"], 1, 1),
        ("cafe\u0301", ["caf\u00e9"], 0, 0),  # no Unicode normalisation
        ("“Zoë”", ["Zoë"], 0, 0),  # curly quotes are no punctuation here
        ("", ["Nile"], 0, 0),
        ("a", ["the"], 1, 0),  # nothing left of either: equal, and without a shared word
        ("Nile", [], 0, 0),
        ("北京市朝阳区", ["北京市"], 0, 2 * 3 / (6 + 3)),  # a character is a word where there are no blanks
        ("“北京市。”", ["北京市"], 1, 1),
        ("東京タワー", ["東京"], 0, 2 * 2 / (5 + 2)),
        ("แม่น้ำ", ["แม่"], 0, 2 * 2 / (4 + 2)),  # marks go with their letters
        ("ទន្លេ", ["ទន្លេ។"], 1, 1),
        ("नदी पर पुल।", ["नदी पर"], 0, 2 * 2 / (3 + 2)),  # vowel signs cut no word
        ("نهر النيل،", ["نهر النيل"], 1, 1),
        ("река Нил", ["Нил"], 0, 2 / 3),
        ("나일강", ["나일"], 0, 0),  # Korean has blanks
        ("iPhone 15手机", ["iphone手机"], 0, 2 * 3 / (4 + 3)),
    ],
)
def test_scores_by_hand(prediction: str, golds: list[str], expected_match: float, expected_f1: float) -> None:
    assert exact_match(prediction=prediction, golds=golds) == expected_match
    assert f1(prediction=prediction, golds=golds) == pytest.approx(expected_f1)


def official(text: str) -> list[str]:
    """The words that SQuAD's own script compares, after Rajpurkar et al."""
    exclude = set(string.punctuation)
    without = "".join(ch for ch in text.lower() if ch not in exclude)
    return re.sub(r"\b(a|an|the)\b", " ", without).split()


def test_english_answers_have_the_words_of_the_official_script() -> None:
    generator, marks = random.Random(0), [*string.printable, *"“”‘’–—…éßÆ·£°½«»¿ñ†•"]
    for _ in range(2000):
        text = "".join(generator.choices([*marks, "the ", " an ", "Nile"], k=generator.randint(0, 30)))
        assert words_of(text) == official(text), text


def test_scores_equal_those_of_torchmetrics() -> None:
    generator = random.Random(0)
    vocabulary = ["the", "a", "Nile", "nile,", "river", "long.", "6650", "“Zoë”", "U.S."]
    for _ in range(100):
        prediction, *golds = (" ".join(generator.choices(vocabulary, k=generator.randint(1, 4))) for _ in range(4))
        if not normalise_answer(prediction):
            continue  # where it departs from SQuAD v1.1
        target = {"answers": {"text": golds, "answer_start": [0] * 3}, "id": "1"}
        expected = squad({"prediction_text": prediction, "id": "1"}, target)
        assert 100 * exact_match(prediction=prediction, golds=golds) == pytest.approx(float(expected["exact_match"]))
        assert 100 * f1(prediction=prediction, golds=golds) == pytest.approx(float(expected["f1"]))


def update(metric: SquadMetric, rows: list[int], *, sure: float = 9.0, answer: str = "gold") -> None:
    """Feed features with logits that point at the gold span, or at the first token of the context."""
    features = metric.features.select(rows)
    batch = {name: torch.tensor(features[name][:]) for name in POSITIONS}
    names = {"gold": ("start_positions", "end_positions"), "first token": ("context_start", "context_start")}[answer]
    start, end = (sure * torch.nn.functional.one_hot(torch.tensor(features[name][:]), 32).float() for name in names)
    metric.update(SimpleNamespace(start_logits=start, end_logits=end), batch)


def scores(metric: SquadMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_gold_logits_score_one_hundred_in_any_order_and_with_repeats(data: tuple[Dataset, Dataset]) -> None:
    metric = SquadMetric(examples=data[0], features=data[1])
    rows = list(range(len(data[1])))
    for part in (rows[::-2], rows[-2::-2], rows[:3], rows[:1]):
        update(metric, part)
    assert scores(metric) == {"exact_match": 100, "f1": 100}
    assert metric.predictions() == {row["id"]: row["answers"]["text"][0] for row in data[0]}


def test_the_surest_window_gives_the_answer(data: tuple[Dataset, Dataset]) -> None:
    features = data[1]
    rows = [row for row in range(len(features)) if features["example_index"][row] == 1]
    gold = next(row for row in rows if features["start_positions"][row] > 0)
    other = next(row for row in rows if features["start_positions"][row] == 0)
    for sure, expected in ((8.0, 100.0), (10.0, 0.0)):
        metric = SquadMetric(examples=data[0], features=features)
        update(metric, [other], sure=sure, answer="first token")
        update(metric, [gold], sure=9.0)
        assert scores(metric) == {"exact_match": expected, "f1": expected}


def test_only_examples_seen_count_and_repeats_weigh_nothing(data: tuple[Dataset, Dataset]) -> None:
    features = data[1]
    by_example = [[row for row in range(len(features)) if features["example_index"][row] == index] for index in (0, 1)]
    metric = SquadMetric(examples=data[0], features=features)
    update(metric, by_example[0])
    for _ in range(3):
        update(metric, by_example[1], answer="first token")
    assert scores(metric) == {"exact_match": 50, "f1": 50}
    assert set(metric.predictions()) == {"nile-1", "nile-2"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # which says less
def test_nothing_seen_is_said(data: tuple[Dataset, Dataset]) -> None:
    for threshold in (None, 0.0):
        with pytest.raises(UserError, match="no example was evaluated"):
            SquadMetric(examples=data[0], features=data[1], null_score_diff_threshold=threshold).compute()


def test_the_longest_answer_is_bounded(data: tuple[Dataset, Dataset]) -> None:
    metric = SquadMetric(examples=data[0], features=data[1], max_answer_length=2)
    update(metric, list(range(len(data[1]))))
    assert metric.predictions()["nile-1"] in {"the Mediterranean", "Mediterranean Sea", "the", "Sea"}


def test_ranks_add_up(data: tuple[Dataset, Dataset]) -> None:
    rows = list(range(len(data[1])))
    ranks = [SquadMetric(examples=data[0], features=data[1]) for _ in range(2)]
    update(ranks[0], rows[::2])
    update(ranks[1], [*rows[1::2], rows[0]])  # a distributed sampler repeats to make ranks equally long
    ranks[0].merge_state(ranks[1])
    assert scores(ranks[0]) == {"exact_match": 100, "f1": 100}


def test_update_stays_on_the_device(data: tuple[Dataset, Dataset]) -> None:
    metric = SquadMetric(examples=data[0], features=data[1])

    def meta(*shape: int, dtype: torch.dtype) -> Tensor:  # has no values: whatever asks for one raises
        return torch.empty(*shape, dtype=dtype, device="meta")

    batch = {name: meta(4, dtype=torch.int64) for name in POSITIONS}
    logits = meta(4, 32, dtype=torch.bfloat16)
    metric.update(SimpleNamespace(start_logits=logits, end_logits=logits), batch)
    assert metric.score_NK[0].shape == (4, 20)
    assert metric.score_NK[0].dtype == metric.null_N[0].dtype == torch.float32
