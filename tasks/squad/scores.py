"""How SQuAD compares an answer with the right ones: v1.1, and v2, where some questions have no answer.

Where a script has no blanks between words, each character is a word, and the punctuation of other scripts is none, as
in MLQA (Lewis et al. 2020). SQuAD's own script finds one word in a Chinese sentence. English scores the same.

Shapes: `E` examples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

import numpy as np
import regex

from bplightning.tasks.shared.unspaced_scripts import has_unspaced, parts

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
FOREIGN = regex.compile(r"(?V1)[\p{P}--[\u0000-\u00FF\u2000-\u206F]]")
"""Punctuation of scripts other than Latin; curly quotes and long dashes stay, as in SQuAD's script."""
ANY_PUNCTUATION = regex.compile(r"\p{P}")


def normalise_answer(text: str) -> str:
    """Lower-case, without ASCII punctuation, English articles and superfluous blanks: as SQuAD v1.1 compares answers.

    >>> normalise_answer(" The  U.S. -- an  Example!"), normalise_answer("“北京市。”")
    ('us example', '北京市')
    """
    if not text.isascii():
        text = (ANY_PUNCTUATION if has_unspaced(text) else FOREIGN).sub("", text)
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def words_of(text: str) -> list[str]:
    """The words of an answer that F1 compares.

    >>> words_of("the Nile."), words_of("北京市")
    (['nile'], ['北', '京', '市'])
    """
    return [part for word in normalise_answer(text).split() for part in parts(word)]


def exact_match(*, prediction: str, golds: Iterable[str]) -> float:
    """1 where the normalised prediction equals a normalised gold answer, else 0.

    >>> exact_match(prediction="the Nile.", golds=["Amazon", "Nile"])
    1.0
    """
    return float(any(normalise_answer(prediction) == normalise_answer(gold) for gold in golds))


def f1(*, prediction: str, golds: Iterable[str]) -> float:
    """The best F1, over the gold answers, of the prediction's and the answer's words as multisets.

    Two answers without words (``"the"`` and ``""``) share none: 0 in SQuAD v1.1, and 1 in v2 and `torchmetrics`.

    >>> f1(prediction="the river Nile", golds=["Nile", "Blue Nile"])
    0.6666666666666666
    """
    words = Counter(words_of(prediction))
    best = 0.0
    for gold in golds:
        gold_words = Counter(words_of(gold))
        shared = (words & gold_words).total()
        if shared:
            best = max(best, 2 * shared / (words.total() + gold_words.total()))
    return best


def scores_v2(*, prediction: str, golds: Iterable[str]) -> tuple[float, float]:
    """Exact match and F1, each in [0, 1], as SQuAD v2 counts them.

    Gold answers that are empty after normalisation are dropped. Where none is left, the right answer is none: a
    prediction without words scores 1 and any other 0.

    >>> scores_v2(prediction="", golds=[]), scores_v2(prediction="the Nile", golds=[])
    ((1.0, 1.0), (0.0, 0.0))
    """
    kept = [gold for gold in golds if normalise_answer(gold)]
    if not kept:
        right = float(not normalise_answer(prediction))
        return right, right
    return exact_match(prediction=prediction, golds=kept), f1(prediction=prediction, golds=kept)


def best_threshold(
    *, score_E: np.ndarray, predicted_E: np.ndarray, has_answer_E: np.ndarray, no_answer_score_E: np.ndarray
) -> tuple[float, float]:
    """The threshold of the no-answer score at which most is right, found as SQuAD v2's official evaluation does.

    It starts from no question answered and a threshold of 0, and takes in the questions by rising no-answer score, one
    at a time (also where several have the same); the first of equally good ones is kept.

    Args:
        score_E: What each example's answer scores, were it given, in [0, 1].
        predicted_E: Whether there is an answer to give.
        has_answer_E: Whether the question has one.
        no_answer_score_E: No answer is predicted where this is above the threshold.

    Returns:
        The total score, in per cent of the examples, and the threshold.

    >>> arrays = {"score_E": np.array([1.0, 0.0, 1.0]), "predicted_E": np.array([True, True, True])}
    >>> arrays |= {"has_answer_E": np.array([True, False, True]), "no_answer_score_E": np.array([-3.0, 2.0, -1.0])}
    >>> best_threshold(**arrays)
    (100.0, -1.0)
    """
    order_E = np.argsort(no_answer_score_E, kind="stable")
    gain_E = np.where(has_answer_E, score_E, -predicted_E.astype(float))
    unanswered = float(np.count_nonzero(~has_answer_E))
    total_E = np.cumsum([unanswered, *gain_E[order_E]])
    best = int(total_E.argmax())
    threshold = float(no_answer_score_E[order_E[best - 1]]) if best else 0.0
    return 100 * float(total_E[best]) / len(score_E), threshold
