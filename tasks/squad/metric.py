"""Exact match and F1 of SQuAD v1.1, in per cent."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bplightning.tasks.squad.answers import Spans, best_answers, find_spans

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower-case, without ASCII punctuation, English articles and superfluous blanks: as SQuAD v1.1 compares answers.

    >>> normalise_answer(" The  U.S. -- an  Example!")
    'us example'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


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
    words = Counter(normalise_answer(prediction).split())
    best = 0.0
    for gold in golds:
        gold_words = Counter(normalise_answer(gold).split())
        shared = (words & gold_words).total()
        if shared:
            best = max(best, 2 * shared / (words.total() + gold_words.total()))
    return best


class SquadMetric(Metric):
    """Exact match and F1 over the examples whose features were seen, in per cent.

    `update` keeps the best spans of each feature and stays on the device; `compute` turns them into text. A feature
    that is seen twice counts once, and features may come in any order.

    Args:
        examples: Columns as `squad_data.COLUMNS`.
        features: As `squad_features.tokenize` made them of `examples`.
        max_answer_length: Tokens of the longest answer, at least 1.
        n_best: Spans kept of each feature, at least 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, *, examples: Dataset, features: Dataset, max_answer_length: int = 30, n_best: int = 20) -> None:
        super().__init__()
        self.examples = examples
        self.features = features
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        for name in Spans._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        """Keep the best spans of a batch.

        Args:
            outputs: The model's, with ``start_logits`` and ``end_logits``, each ``(B, L)``.
            batch: With `squad_features.POSITIONS`, each ``(B,)``.
        """
        spans = find_spans(outputs, batch, max_answer_length=self.max_answer_length, n_best=self.n_best)
        for name, values in spans._asdict().items():
            getattr(self, name).append(values)

    def predictions(self) -> dict[str, str]:
        """The answers so far, id to text."""
        texts = self._texts()
        return dict(zip(self._column("id", texts), texts.values(), strict=True))

    def compute(self) -> dict[str, Tensor]:
        """``exact_match`` and ``f1``, 0-d, in per cent of the examples seen."""
        texts = self._texts()
        golds = [gold["text"] for gold in self._column("answers", texts)]
        pairs = list(zip(texts.values(), golds, strict=True))
        scores = {
            "exact_match": sum(exact_match(prediction=text, golds=gold) for text, gold in pairs),
            "f1": sum(f1(prediction=text, golds=gold) for text, gold in pairs),
        }
        return {name: torch.tensor(100 * total / len(pairs), device=self.device) for name, total in scores.items()}

    def _spans(self) -> Spans:
        return Spans(*(dim_zero_cat(getattr(self, name)) for name in Spans._fields))

    def _texts(self) -> dict[int, str]:
        """The predicted text of each example seen, by row."""
        best = best_answers(examples=self.examples, features=self.features, spans=self._spans())
        return {index: answers[0].text if answers else "" for index, answers in best.items()}

    def _column(self, name: str, rows: Iterable[int]) -> list[Any]:
        return self.examples.select_columns([name])[list(rows)][name]
