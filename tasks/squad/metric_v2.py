"""Exact match and F1 of SQuAD v2, where some questions have no answer, in per cent.

Shapes: `E` examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from bplightning.tasks.squad.answers import best_answers, no_answer_score, null_scores
from bplightning.tasks.squad.metric import SquadMetric, exact_match, f1, normalise_answer


def scores_v2(*, prediction: str, golds: Iterable[str]) -> tuple[float, float]:
    """Exact match and F1, each in [0, 1], as SQuAD v2 counts them.

    Gold answers of which normalisation leaves nothing are dropped. Where none is left, the right answer is none: a
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


class Candidate(NamedTuple):
    """The answer to one example, were one given, and how far no answer is ahead of it."""

    text: str
    no_answer_score: float


class SquadV2Metric(SquadMetric):
    """Exact match and F1 where some questions have no answer, in per cent of the examples whose features were seen.

    Args:
        examples: Columns as `squad_data.COLUMNS`; those without answers have none.
        features: As `squad_features.tokenize` made them of `examples`.
        max_answer_length: Tokens of the longest answer, at least 1.
        n_best: Spans kept of each feature, at least 1.
        null_score_diff_threshold: No answer is predicted where its score is ahead of the best span's by more than this.
    """

    def __init__(
        self,
        *,
        examples: Dataset,
        features: Dataset,
        max_answer_length: int = 30,
        n_best: int = 20,
        null_score_diff_threshold: float = 0.0,
    ) -> None:
        super().__init__(examples=examples, features=features, max_answer_length=max_answer_length, n_best=n_best)
        self.null_score_diff_threshold = null_score_diff_threshold

    def compute(self) -> dict[str, Tensor]:
        """Scores and best thresholds, 0-d, under the names of SQuAD v2's official evaluation.

        Returns:
            ``exact_match`` and ``f1`` of all examples; ``HasAns_exact``, ``HasAns_f1``, ``NoAns_exact`` and
            ``NoAns_f1`` of those with and without an answer, where there are any; ``best_exact`` and ``best_f1``, which
            the thresholds ``best_exact_thresh`` and ``best_f1_thresh`` would give.
        """
        candidates = self._candidates()
        golds = [gold["text"] for gold in self._column("answers", candidates)]
        text_E = [candidate.text for candidate in candidates.values()]
        raw_E2 = _score(text_E, golds)
        final_E2 = _score([self._decide(candidate) for candidate in candidates.values()], golds)
        arrays = {
            "predicted_E": np.array([bool(text) for text in text_E]),
            "has_answer_E": np.array([bool(gold) for gold in golds]),
            "no_answer_score_E": np.array([candidate.no_answer_score for candidate in candidates.values()]),
        }
        values = dict(zip(("exact_match", "f1"), 100 * final_E2.mean(0), strict=True))
        for group, in_group_E in (("HasAns", arrays["has_answer_E"]), ("NoAns", ~arrays["has_answer_E"])):
            if in_group_E.any():
                values[f"{group}_exact"], values[f"{group}_f1"] = 100 * final_E2[in_group_E].mean(0)
        for name, score_E in zip(("best_exact", "best_f1"), raw_E2.T, strict=True):
            values[name], values[f"{name}_thresh"] = best_threshold(score_E=score_E, **arrays)
        return {name: torch.tensor(float(value), device=self.device) for name, value in values.items()}

    def _texts(self) -> dict[int, str]:
        return {index: self._decide(candidate) for index, candidate in self._candidates().items()}

    def _decide(self, candidate: Candidate) -> str:
        return "" if candidate.no_answer_score > self.null_score_diff_threshold else candidate.text

    def _candidates(self) -> dict[int, Candidate]:
        """By row of the examples seen."""
        spans = self._spans()
        nulls = null_scores(features=self.features, spans=spans)
        best = best_answers(examples=self.examples, features=self.features, spans=spans)
        return {
            index: Candidate(
                text=answers[0].text if answers else "",
                no_answer_score=no_answer_score(answers=answers, null_score=nulls[index]),
            )
            for index, answers in best.items()
        }


def _score(texts: list[str], golds: list[list[str]]) -> np.ndarray:
    """Exact match and F1 of each example, ``(E, 2)``."""
    return np.array([scores_v2(prediction=text, golds=gold) for text, gold in zip(texts, golds, strict=True)])
