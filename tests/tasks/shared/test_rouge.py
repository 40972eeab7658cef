"""ROUGE against the package's own words and torchmetrics', by hand, and in scripts other than Latin."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import rouge as theirs

from bplightning.tasks.shared.rouge import NAMES, rouge, sentences, words

VOCABULARY = ("the", "a", "dog", "cat", "saw", "rivers", "mountain", "flowing", "flows", "of", "and", "42", "Runner")


def texts(rng: random.Random) -> str:
    """A few sentences of few words, so that much recurs."""
    made = (" ".join(rng.choices(VOCABULARY, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 4)))
    return "".join(f"{text.capitalize()}. " for text in made)


@pytest.mark.parametrize("seed", range(30))
def test_english_scores_what_it_scores_with_the_words_of_the_package(seed: int) -> None:
    rng = random.Random(seed)
    prediction, references = texts(rng), [texts(rng) for _ in range(rng.randint(1, 3))]
    lines = ["\n".join(sentences(text)) for text in (prediction, *references)]
    expected = RougeScorer(NAMES, use_stemmer=True).score_multi(lines[1:], lines[0])
    assert rouge(prediction, references) == tuple(expected[name].fmeasure for name in NAMES)


@pytest.mark.parametrize("seed", range(30))
def test_it_agrees_with_torchmetrics(seed: int) -> None:
    rng = random.Random(seed)
    prediction, references = texts(rng), [texts(rng) for _ in range(rng.randint(1, 3))]
    found = dict(zip(NAMES, rouge(prediction, references), strict=True))
    keys = ("rouge1", "rouge2", "rougeL")  # it finds the sentences of the fourth with a download only
    same_words = {"normalizer": lambda text: text, "tokenizer": words}
    expected = theirs.rouge_score(prediction, references, rouge_keys=keys, **same_words)
    for key in keys:
        assert found[key] == pytest.approx(float(expected[f"{key}_fmeasure"]), abs=1e-6)
    summary = [
        theirs._rouge_lsum_score(*([words(each) for each in sentences(text)] for text in (prediction, reference)))
        for reference in references
    ]
    assert found["rougeLsum"] == pytest.approx(max(float(score["fmeasure"]) for score in summary), abs=1e-6)


def test_by_hand() -> None:
    r1, r2, r_l, r_lsum = rouge("cats ran. a dog slept", ["A dog slept.\nThe cats were running."])
    # words: cat ran a dog slept | a dog slept the cat were run; shared: cat, a, dog, slept
    assert r1 == pytest.approx(2 * 4 / (5 + 7))
    assert r2 == pytest.approx(2 * 2 / (4 + 6))  # "a dog", "dog slept"
    assert r_l == pytest.approx(2 * 3 / 12)  # "a dog slept"
    assert r_lsum == pytest.approx(2 * 4 / 12)  # "a dog slept", and "cat" of the other sentence
    assert rouge("cats ran. a dog slept", ["a dog slept. the cats were running."])[3] == r_l  # it is one sentence


def test_the_reference_that_fits_best_counts_and_for_each_score_its_own() -> None:
    one, other = "dog cat", "big river dog saw a cat saw a dog"
    prediction = "cat saw a dog"
    alone = [rouge(prediction, [reference]) for reference in (one, other)]
    assert alone[0][0] > alone[1][0] * 0.9
    assert alone[0][1] < alone[1][1]
    assert rouge(prediction, [one, other]) == tuple(map(max, zip(*alone, strict=True)))


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "a dog"), ("a dog", ""), ("", ""), ("東京", "大阪"), ("?", "!"), ("?", "?")]
)
def test_without_words_there_is_no_score(prediction: str, reference: str) -> None:
    assert rouge(prediction, [reference]) == (0, 0, 0, 0)


def test_words_are_letters_and_digits_in_lower_case_and_longer_ones_are_stemmed() -> None:
    assert words("The CATS' naïve runs, 1,000 times: was flying_high") == (
        ["the", "cat", "naïv", "run", "1", "000", "time", "was", "fli", "high"]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Совет принял закон о реке", ["совет", "принял", "закон", "о", "реке"]),
        ("नदी पर नया पुल बना", ["नदी", "पर", "नया", "पुल", "बना"]),  # vowel signs are part of a word
        ("Η πόλη έχει νέα γέφυρα", ["η", "πόλη", "έχει", "νέα", "γέφυρα"]),
        ("市政府修建了新桥 3", [*"市政府修建了新桥", "3"]),  # no blanks, so each character is a word
        ("แม่น้ำ", ["แ", "ม่", "น้", "ำ"]),
        ("မြစ်", ["မြ", "စ်"]),
        ("über alles", ["über", "all"]),
        ("Cafe\u0301", ["café"]),  # however the accent is written
    ],
)
def test_words_of_other_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert rouge(text, [text])[0] == 1


def test_letters_with_accents_are_not_passed_over() -> None:
    assert rouge("über alles", ["ber alles"])[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? 4 more", ["One.", "Two!", "Three?", "4 more"]),
        ("One\nTwo. three\n\n four", ["One", "Two. three", "four"]),
        ('He said "No." "Yes." Then', ['He said "No."', '"Yes."', "Then"]),
        ("Prof. A. B. Curie of the U.S. Army, e.g. Paris", ["Prof. A. B. Curie of the U.S. Army, e.g. Paris"]),
        ("It was I. Then we left.", ["It was I.", "Then we left."]),
        ("It cost 3.50 dollars... So?", ["It cost 3.50 dollars...", "So?"]),
        ("", []),
        ("市政府修建了新桥。新桥很好！“对。”我说。", ["市政府修建了新桥。", "新桥很好！", "“对。”", "我说。"]),
        ("नदी पर। नया पुल।", ["नदी पर।", "नया पुल।"]),
        ("Совет принял. Закон о реке.", ["Совет принял.", "Закон о реке."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
