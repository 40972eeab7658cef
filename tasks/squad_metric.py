"""Exact match and F1 of SQuAD v1.1, from logits to per cent.

Shapes: `B` features of a batch, `L` tokens of a feature, `W` widest answer in tokens, `K` spans kept of a feature,
`N` features seen.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

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


def best_spans(
    *,
    start_logits_BL: Tensor,
    end_logits_BL: Tensor,
    context_start_B: Tensor,
    context_end_B: Tensor,
    max_answer_length: int,
    n_best: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best answer spans of each feature, all spans considered.

    Args:
        start_logits_BL: Score of each token as the first one.
        end_logits_BL: Score of each token as the last one.
        context_start_B: The context's first token.
        context_end_B: One past the context's last token.
        max_answer_length: Tokens of the longest span, `W`.
        n_best: Spans kept of each feature, `K`.

    Returns:
        First token, last token and score (the two logits' sum) of the spans, each ``(B, K)``, best first. Where a
        feature has fewer spans than `K` the rest scores ``-inf``.

    >>> start, end = torch.tensor([[9.0, 1.0, 4.0, 0.0]]), torch.tensor([[9.0, 5.0, 0.0, 1.0]])
    >>> context = {"context_start_B": torch.tensor([1]), "context_end_B": torch.tensor([4])}
    >>> best_spans(start_logits_BL=start, end_logits_BL=end, **context, max_answer_length=2, n_best=2)
    (tensor([[1, 2]]), tensor([[1, 3]]), tensor([[6., 5.]]))
    """
    batch, length = start_logits_BL.shape
    position_L = torch.arange(length, device=start_logits_BL.device)
    outside_BL = (position_L < context_start_B[:, None]) | (position_L >= context_end_B[:, None])
    start_BL = start_logits_BL.float().masked_fill(outside_BL, -torch.inf)
    end_BL = end_logits_BL.float().masked_fill(outside_BL, -torch.inf)
    # Row i of the windows holds the end logits at i, i + 1, ..., i + W - 1: no span that is backwards or too long.
    end_BLW = torch.nn.functional.pad(end_BL, (0, max_answer_length - 1), value=-torch.inf).unfold(
        1, max_answer_length, 1
    )
    score_BS = (start_BL[:, :, None] + end_BLW).reshape(batch, length * max_answer_length)
    kept = min(n_best, score_BS.shape[1])
    score_BK, span_BK = score_BS.topk(kept)
    score_BK = torch.nn.functional.pad(score_BK, (0, n_best - kept), value=-torch.inf)
    span_BK = torch.nn.functional.pad(span_BK, (0, n_best - kept))
    first_BK = span_BK // max_answer_length
    return first_BK, first_BK + span_BK % max_answer_length, score_BK


def best_answers(
    *,
    examples: Dataset,
    features: Dataset,
    feature_N: np.ndarray,
    start_N: np.ndarray,
    end_N: np.ndarray,
    score_N: np.ndarray,
) -> dict[int, str]:
    """The text of the best span of each example, over all its windows.

    The order of the spans and repeated ones make no difference.

    Args:
        examples: Columns as `squad_data.COLUMNS`.
        features: As `squad_features.tokenize` made them of `examples`.
        feature_N: Row of `features`.
        start_N: First token of the span.
        end_N: Last token of the span.
        score_N: Its score; ``-inf`` says that there is no span.

    Returns:
        Row of `examples` to the answer's text, for those examples that a feature was given of.
    """
    example_N = np.asarray(features["example_index"])[feature_N]
    order = np.lexsort((end_N, start_N, feature_N, -score_N, example_N))
    found, first_of_each = np.unique(example_N[order], return_index=True)
    best = order[first_of_each]
    rows = features.select_columns(["context_start", "char_start_C", "char_end_C"])[feature_N[best]]
    contexts = examples.select_columns(["context"])[found]["context"]
    answers: dict[int, str] = {}
    for row, (index, span) in enumerate(zip(found.tolist(), best.tolist(), strict=True)):
        answers[index] = ""
        if score_N[span] > -np.inf:
            first = rows["context_start"][row]
            begin, end = rows["char_start_C"][row][start_N[span] - first], rows["char_end_C"][row][end_N[span] - first]
            answers[index] = contexts[row][begin:end].strip()
    return answers


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
    feature: list[Tensor]
    start: list[Tensor]
    end: list[Tensor]
    score: list[Tensor]

    def __init__(self, *, examples: Dataset, features: Dataset, max_answer_length: int = 30, n_best: int = 20) -> None:
        super().__init__()
        self.examples = examples
        self.features = features
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        for name in ("feature", "start", "end", "score"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        """Keep the best spans of a batch.

        Args:
            outputs: The model's, with ``start_logits`` and ``end_logits``, each ``(B, L)``.
            batch: With ``feature_index``, ``context_start`` and ``context_end``, each ``(B,)``.
        """
        start, end, score = best_spans(
            start_logits_BL=outputs.start_logits.detach(),
            end_logits_BL=outputs.end_logits.detach(),
            context_start_B=batch["context_start"],
            context_end_B=batch["context_end"],
            max_answer_length=self.max_answer_length,
            n_best=self.n_best,
        )
        self.feature.append(batch["feature_index"])
        self.start.append(start)
        self.end.append(end)
        self.score.append(score)

    def predictions(self) -> dict[str, str]:
        """The answers so far, id to text."""
        answers = self._answers()
        return dict(zip(self.examples.select_columns(["id"])[list(answers)]["id"], answers.values(), strict=True))

    def compute(self) -> dict[str, Tensor]:
        """``exact_match`` and ``f1``, 0-d, in per cent of the examples seen."""
        answers = self._answers()
        golds = [gold["text"] for gold in self.examples.select_columns(["answers"])[list(answers)]["answers"]]
        pairs = list(zip(answers.values(), golds, strict=True))
        scores = {
            "exact_match": sum(exact_match(prediction=text, golds=gold) for text, gold in pairs),
            "f1": sum(f1(prediction=text, golds=gold) for text, gold in pairs),
        }
        return {name: torch.tensor(100 * total / len(pairs), device=self.device) for name, total in scores.items()}

    def _answers(self) -> dict[int, str]:
        # Only the best span of a feature can win; the others are there for who wants to list alternatives.
        feature, start, end, score = (
            dim_zero_cat(getattr(self, n)).cpu() for n in ("feature", "start", "end", "score")
        )
        return best_answers(
            examples=self.examples,
            features=self.features,
            feature_N=feature.numpy(),
            start_N=start[:, 0].numpy(),
            end_N=end[:, 0].numpy(),
            score_N=score[:, 0].numpy(),
        )
