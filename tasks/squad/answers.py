"""From logits to answers: the best spans of each window, and of each example over all its windows.

The metrics and `predict` both go this way, so what is measured is what is predicted.

Shapes: `B` features (windows) of a batch, `L` tokens of a feature, `W` widest answer in tokens, `K` spans kept of a
feature, `N` features seen, `R` features seen when each counts once, `S` spans of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor


class Spans(NamedTuple):
    """The best spans of some features, and what speaks for no answer there.

    Attributes:
        feature_N: Row of the table of features.
        start_NK: First token of the spans, the best span first.
        end_NK: Their last token.
        score_NK: Their two logits' sum; ``-inf`` says that there is no span.
        null_N: The sum of CLS's two logits, the score of no answer.
    """

    feature_N: Tensor
    start_NK: Tensor
    end_NK: Tensor
    score_NK: Tensor
    null_N: Tensor


@dataclass(frozen=True)
class Answer:
    """A span of an example's context.

    Attributes:
        text: The span's text, without blanks around it.
        start: Its first character in the context.
        end: One past its last character.
        score: Sum of the two logits.
    """

    text: str
    start: int
    end: int
    score: float


def find_spans(outputs: Any, batch: dict[str, Tensor], *, max_answer_length: int, n_best: int) -> Spans:
    """What is kept of a batch; it stays on the device.

    Args:
        outputs: The model's, with ``start_logits`` and ``end_logits``, each ``(B, L)``.
        batch: With `squad_features.POSITIONS`, each ``(B,)``.
        max_answer_length: Tokens of the longest span.
        n_best: Spans kept of each feature.
    """
    start_logits_BL, end_logits_BL = outputs.start_logits.detach(), outputs.end_logits.detach()
    spans = best_spans(
        start_logits_BL=start_logits_BL,
        end_logits_BL=end_logits_BL,
        context_start_B=batch["context_start"],
        context_end_B=batch["context_end"],
        max_answer_length=max_answer_length,
        n_best=n_best,
    )
    cls_B1 = batch["cls_index"][:, None].long()
    null_B1 = start_logits_BL.gather(1, cls_B1).float() + end_logits_BL.gather(1, cls_B1).float()
    return Spans(batch["feature_index"], *spans, null_B1[:, 0])


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


def best_answers(*, examples: Dataset, features: Dataset, spans: Spans, n_best: int = 1) -> dict[int, list[Answer]]:
    """The best answers of each example, over all its windows.

    The order of the features and repeated ones make no difference, and a span that two windows share counts once, with
    the better of its scores.

    Args:
        examples: Columns as `squad_data.COLUMNS`.
        features: As `squad_features.tokenize` made them of `examples`.
        spans: What `find_spans` kept of features, in any order.
        n_best: Answers of an example; there may be fewer, and none where no window has a span.

    Returns:
        Row of `examples` to its answers, the best first, for those examples that a feature was given of.
    """
    feature_N, start_NK, end_NK, score_NK = (values.cpu().numpy() for values in spans[:4])
    row_R, first_R = np.unique(feature_N, return_index=True)
    score_RK = score_NK[first_R, :n_best]
    order_S = np.argsort(-score_RK, axis=None, kind="stable")  # of equal ones the earlier window's comes first
    score_S = score_RK.ravel()[order_S]
    order_S, score_S = order_S[score_S > -np.inf], score_S[score_S > -np.inf]
    window_S, rank_S = np.unravel_index(order_S, score_RK.shape)

    columns = ["example_index", "context_start", "char_start_C", "char_end_C"]
    windows = features.select_columns(columns).with_format("arrow")[row_R]
    example_R = windows["example_index"].to_numpy()
    token_S = first_R[window_S], rank_S
    offset_S = windows["context_start"].to_numpy()[window_S]
    begin_S = _characters(windows["char_start_C"], row_S=window_S, token_S=start_NK[token_S] - offset_S)
    end_S = _characters(windows["char_end_C"], row_S=window_S, token_S=end_NK[token_S] - offset_S)

    found: dict[int, dict[tuple[int, int], float]] = {index: {} for index in example_R.tolist()}
    parts = (example_R[window_S], begin_S, end_S, score_S)
    for index, begin, end, score in zip(*(part.tolist() for part in parts), strict=True):
        if len(found[index]) < n_best:
            found[index].setdefault((begin, end), score)
    contexts = examples.select_columns(["context"])[list(found)]["context"]
    return {
        index: [_answer(context, begin, end, score) for (begin, end), score in scores.items()]
        for (index, scores), context in zip(found.items(), contexts, strict=True)
    }


def null_scores(*, features: Dataset, spans: Spans) -> dict[int, float]:
    """Each example's score of no answer: the least over its windows, as in BERT.

    Args:
        features: As `squad_features.tokenize` made them.
        spans: What `find_spans` kept of features, in any order.

    Returns:
        Row of the examples to the score, for those examples that a feature was given of.
    """
    example_N = np.asarray(features["example_index"])[spans.feature_N.cpu().numpy()]
    index_E, place_N = np.unique(example_N, return_inverse=True)
    score_E = np.full(len(index_E), np.inf)
    np.minimum.at(score_E, place_N, spans.null_N.cpu().numpy())
    return dict(zip(index_E.tolist(), score_E.tolist(), strict=True))


def no_answer_score(*, answers: list[Answer], null_score: float) -> float:
    """How far no answer is ahead of the best span: what `null_score_diff_threshold` is compared with.

    In float32, so that a metric, which is float32, can report one of these values as a threshold without rounding it.

    >>> no_answer_score(answers=[Answer(text="Nile", start=0, end=4, score=3.0)], null_score=5.0)
    2.0
    >>> no_answer_score(answers=[], null_score=5.0)
    inf
    """
    best = answers[0].score if answers else -np.inf
    return float(np.float32(null_score) - np.float32(best))


def _characters(column: pa.ChunkedArray, *, row_S: np.ndarray, token_S: np.ndarray) -> np.ndarray:
    """Element `token_S` of the lists in rows `row_S`."""
    lists = column.combine_chunks()
    return lists.values.to_numpy()[lists.offsets.to_numpy()[row_S] + token_S]


def _answer(context: str, begin: int, end: int, score: float) -> Answer:
    text = context[begin:end]
    start = begin + len(text) - len(text.lstrip())
    return Answer(text=text.strip(), start=start, end=start + len(text.strip()), score=score)
