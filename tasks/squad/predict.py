"""Prediction: from records without answers to windows, and from the windows' best spans to answers ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bplightning.errors import UserError
from bplightning.tasks.shared.data_task import ids_of
from bplightning.tasks.squad.answers import Answer, Spans, best_answers, no_answer_score, null_scores
from bplightning.tasks.squad.data import COLUMNS
from bplightning.tasks.squad.features import tokenize_inputs


class Inputs:
    """Questions to answer, cut into windows.

    Args:
        records: With ``question`` and ``context``, both text, and maybe an ``id``, a string or an integer; other keys
            make no difference.
        places: What to call each of them in messages; no two alike.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a window, question and special tokens included.
        stride: Tokens that neighbouring windows share.

    Attributes:
        examples: Columns as `squad_data.COLUMNS`, without answers; the id is the record's place, for errors to name.
        features: As `squad_features.tokenize_inputs` makes them of `examples`.

    Raises:
        UserError: If there is no record, one of them breaks the rule above, or a question is too long.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        places: Sequence[str],
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        stride: int,
    ) -> None:
        if not records:
            raise UserError("The inputs hold no record: give at least one, with 'question' and 'context'.")
        for place, record in zip(places, records, strict=True):
            _check(place, record)
        self._ids = ids_of(records)
        columns = {name: [record[name] for record in records] for name in ("question", "context")}
        columns["id"] = list(places)
        columns["answers"] = [{"text": [], "answer_start": []}] * len(records)
        self.examples = Dataset.from_dict({name: columns[name] for name in COLUMNS}, features=COLUMNS)
        self.features = tokenize_inputs(self.examples, tokenizer=tokenizer, max_length=max_length, stride=stride)

    def answers(
        self, batches: Sequence[Spans], *, n_best: int, null_score_diff_threshold: float | None
    ) -> list[dict[str, Any]]:
        """The answers, in the order of the records.

        Args:
            batches: What was kept of all the features, in any order.
            n_best: Answers of an example that share its probability.
            null_score_diff_threshold: No answer is predicted where its score is ahead of the best span's by more than
                this; `None` where each question has an answer.

        Returns:
            For each record ``id`` where it has one, as it was; ``answer``; ``score``, the probability of what is
            predicted, be it an answer or none, in [0, 1]; ``start`` and ``end``, the answer's first character in the
            context and one past its last. With no answer ``answer`` is empty, ``start`` and ``end`` are `None`.

        Raises:
            UserError: If a feature is missing from `batches`.
        """
        spans = Spans(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        given = len(torch.unique(spans.feature_N))
        if given < len(self.features):
            raise UserError(
                f"Only {given} of the {len(self.features)} windows of the inputs were predicted: give what all batches "
                "of `predict_dataloader` gave; with several devices, predict on one."
            )
        best = best_answers(examples=self.examples, features=self.features, spans=spans, n_best=n_best)
        nulls = null_scores(features=self.features, spans=spans)
        return [
            given_id | _prediction(best[index], null_score=nulls[index], threshold=null_score_diff_threshold)
            for index, given_id in enumerate(self._ids)
        ]


def _prediction(answers: list[Answer], *, null_score: float, threshold: float | None) -> dict[str, Any]:
    """The prediction of one example; `threshold` is `None` where it must have an answer."""
    choices, chosen = [answer.score for answer in answers], 0
    if threshold is not None:
        choices.append(null_score)
        if no_answer_score(answers=answers, null_score=null_score) > threshold:
            chosen = len(answers)
    score = _softmax(choices)[chosen] if choices else 0.0  # no choice: no token of the context is left
    if chosen == len(answers) or not answers[chosen].text:
        return {"answer": "", "score": score, "start": None, "end": None}
    return {"answer": answers[0].text, "score": score, "start": answers[0].start, "end": answers[0].end}


def _check(place: str, record: Any) -> None:
    if not isinstance(record, dict):
        raise UserError(f"{place} is {record!r:.60}: it must be an object with 'question' and 'context'.")
    for name in ("question", "context"):
        if name not in record:
            raise UserError(f"{place} lacks {name!r}; it has {list(record)}. Add it, as a string.")
        if not _is_text(record[name]):
            raise UserError(f"{place}: {name!r} is {record[name]!r:.60}; it must be a string that is not blank.")
    if "id" in record and (isinstance(record["id"], bool) or not isinstance(record["id"], str | int)):
        raise UserError(f"{place}: 'id' is {record['id']!r:.60}; it must be a string or an integer, or left out.")


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and no tokenizer can read
        return False
    return True


def _softmax(scores: list[float]) -> list[float]:
    """Logits as probabilities.

    >>> _softmax([1000.0, 1000.0])
    [0.5, 0.5]
    """
    weights = np.exp(np.array(scores) - max(scores))
    return (weights / weights.sum()).tolist()
