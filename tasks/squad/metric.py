"""Exact match and F1 of SQuAD v1.1 and v2, in per cent.

Shapes: `E` examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bplightning.errors import UserError
from bplightning.tasks.shared.bootstrap import bootstrap
from bplightning.tasks.shared.example_metric import NOTHING
from bplightning.tasks.squad.answers import Spans, best_answers, find_spans, no_answer_score, null_scores
from bplightning.tasks.squad.scores import best_threshold, exact_match, f1, scores_v2

NAMES = ("exact_match", "f1")


class SquadMetric(Metric):
    """Exact match and F1 over the examples whose features were seen, in per cent.

    `update` keeps the best spans of each feature and stays on the device; `compute` turns them into text. A feature
    that is seen twice counts once, and features may come in any order.

    Args:
        examples: Columns as `squad.data.COLUMNS`.
        features: As `squad.features.tokenize` made them of `examples`.
        max_answer_length: Tokens of the longest answer, at least 1.
        n_best: Spans kept of each feature, at least 1.
        null_score_diff_threshold: As in SQuAD v2, no answer is predicted where its score is ahead of the best span's by
            more than this; `None` where every question has an answer, as in v1.1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    counted: np.ndarray | None = None
    """Exact match and F1 of each example of the last `compute`, ``(E, 2)``."""
    feature_N: list[Tensor]

    def __init__(
        self,
        *,
        examples: Dataset,
        features: Dataset,
        max_answer_length: int = 30,
        n_best: int = 20,
        null_score_diff_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.examples = examples
        self.features = features
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        self.null_score_diff_threshold = null_score_diff_threshold
        for name in Spans._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        """Keep the best spans of a batch.

        Args:
            outputs: The model's, with ``start_logits`` and ``end_logits``, each ``(B, L)``.
            batch: With `squad.features.POSITIONS`, each ``(B,)``.
        """
        spans = find_spans(outputs, batch, max_answer_length=self.max_answer_length, n_best=self.n_best)
        for name, values in spans._asdict().items():
            getattr(self, name).append(values)

    def predictions(self) -> dict[str, str]:
        """The answers so far, id to text; an empty one where no answer is predicted."""
        texts, ahead = self._best()
        return dict(zip(self._column("id", texts), self._decided(texts, ahead), strict=True))

    def compute(self) -> dict[str, Tensor]:
        """The metrics of the examples seen, 0-d.

        Returns:
            ``exact_match`` and ``f1``. With a threshold also, under the names of SQuAD v2's official evaluation,
            ``HasAns_exact``, ``HasAns_f1``, ``NoAns_exact`` and ``NoAns_f1`` of those with and without an answer, where
            there are any; ``best_exact`` and ``best_f1``, which the thresholds ``best_exact_thresh`` and
            ``best_f1_thresh`` would give.

        Raises:
            UserError: No example was seen.
        """
        if not len(self.feature_N):
            raise UserError(NOTHING)
        texts, ahead = self._best()
        golds = [gold["text"] for gold in self._column("answers", texts)]
        v1 = self.null_score_diff_threshold is None
        values = self._scores_v1(texts, golds) if v1 else self._scores_v2(texts, ahead, golds)
        return {name: torch.tensor(float(value), device=self.device) for name, value in values.items()}

    def intervals(self) -> dict[str, list[float]]:
        """Ends of the 95 % confidence intervals of ``exact_match`` and ``f1``, after `compute`."""
        if self.counted is None:
            return {}
        return bootstrap(
            torch.from_numpy(self.counted), lambda rows: dict(zip(NAMES, (100 * rows.mean(0)).tolist(), strict=True))
        )

    def _scores_v1(self, texts: dict[int, str], golds: list[list[str]]) -> dict[str, float]:
        pairs = list(zip(texts.values(), golds, strict=True))
        found = [(exact_match(prediction=text, golds=gold), f1(prediction=text, golds=gold)) for text, gold in pairs]
        self.counted = np.array(found, dtype=np.float64)
        columns = zip(NAMES, zip(*found, strict=True), strict=True)
        return {name: 100 * sum(values) / len(pairs) for name, values in columns}

    def _scores_v2(self, texts: dict[int, str], ahead: dict[int, float], golds: list[list[str]]) -> dict[str, float]:
        raw_E2, final_E2 = _each(texts.values(), golds), _each(self._decided(texts, ahead), golds)
        arrays = {
            "predicted_E": np.array([bool(text) for text in texts.values()]),
            "has_answer_E": np.array([bool(gold) for gold in golds]),
            "no_answer_score_E": np.array(list(ahead.values())),
        }
        self.counted = final_E2.astype(np.float64)
        values = dict(zip(NAMES, 100 * final_E2.mean(0), strict=True))
        for group, in_group_E in (("HasAns", arrays["has_answer_E"]), ("NoAns", ~arrays["has_answer_E"])):
            if in_group_E.any():
                values[f"{group}_exact"], values[f"{group}_f1"] = 100 * final_E2[in_group_E].mean(0)
        for name, score_E in zip(("best_exact", "best_f1"), raw_E2.T, strict=True):
            values[name], values[f"{name}_thresh"] = best_threshold(score_E=score_E, **arrays)
        return values

    def _best(self) -> tuple[dict[int, str], dict[int, float]]:
        """The answer to each example seen, if one were given, and how far no answer is ahead of it; by row."""
        spans = Spans(*(dim_zero_cat(getattr(self, name)) for name in Spans._fields))
        best = best_answers(examples=self.examples, features=self.features, spans=spans)
        nulls = null_scores(features=self.features, spans=spans)
        texts = {row: answers[0].text if answers else "" for row, answers in best.items()}
        return texts, {row: no_answer_score(answers=found, null_score=nulls[row]) for row, found in best.items()}

    def _decided(self, texts: dict[int, str], ahead: dict[int, float]) -> list[str]:
        """The answers, empty where no answer is predicted."""
        threshold = np.inf if self.null_score_diff_threshold is None else self.null_score_diff_threshold
        return ["" if ahead[row] > threshold else text for row, text in texts.items()]

    def _column(self, name: str, rows: Iterable[int]) -> list[Any]:
        return self.examples.select_columns([name])[list(rows)][name]


def _each(texts: Iterable[str], golds: list[list[str]]) -> np.ndarray:
    """Exact match and F1 of each example as v2 counts them, ``(E, 2)``."""
    return np.array([scores_v2(prediction=text, golds=gold) for text, gold in zip(texts, golds, strict=True)])
