"""Spans that tags of words mark: where entities are, and how many of them are found.

Tags name a type after a prefix: ``B-`` begins a span, ``I-`` continues it, ``E-`` ends it, ``S-`` is one of a
single word (``L-``, ``U-`` and ``M-`` say the same as E, S and I); ``O`` is outside. They are read leniently, as
CoNLL's script does: a span that nothing begins, or nothing ends, counts as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

OUTSIDE = "O"
Span = tuple[str, int, int]
"""Type, first word, last word + 1."""

_PREFIXED = re.compile(r"[BIESLUM]-.+", re.DOTALL)


def mark_spans(names: Iterable[str]) -> bool:
    """Whether tags mark spans: all but ``O`` have a prefix.

    >>> mark_spans(["O", "B-town", "I-town"]), mark_spans(["NOUN", "VERB"])
    (True, False)
    """
    inside = [name for name in names if name != OUTSIDE]
    return bool(inside) and all(_PREFIXED.fullmatch(name) for name in inside)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans that prefixed tags mark.

    Args:
        tags: Of each word.

    >>> spans_of(["B-town", "I-town", "B-town", "O", "I-firm", "I-town"])
    [('town', 0, 2), ('town', 2, 3), ('firm', 4, 5), ('town', 5, 6)]
    """
    spans: list[Span] = []
    before = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix != OUTSIDE:
            begins = prefix in "BSU" or before[0] in "OESLU" or before[1] != kind
            spans.append((kind, place, place + 1) if begins else (*spans.pop()[:2], place + 1))
        before = prefix, kind
    return spans


def entities_of(
    tags: Sequence[str | None], scores: Sequence[float], *, words: Sequence[str], text: str | None = None
) -> list[dict[str, Any]]:
    """The spans that tags mark, ready for JSON.

    Args:
        tags: Of each word; `None` for none, which is outside.
        scores: Probability of each tag.
        words: The words.
        text: Where the words come from, in their order, if from a text.

    Returns:
        For each span ``type``, ``text``, ``score`` (the mean of its words') and ``words``, the first and the last + 1;
        with a text, ``start`` and ``end`` too: its characters are ``text[start:end]``.

    >>> words, text = ["In", "New", "York"], "In  New York"
    >>> entities_of(["O", "B-town", "I-town"], [0.5, 0.5, 1.0], words=words, text=text)
    [{'type': 'town', 'text': 'New York', 'score': 0.75, 'words': [1, 3], 'start': 4, 'end': 12}]
    """
    found: list[dict[str, Any]] = []
    starts: list[int] = []
    if text is not None:
        end = 0
        for word in words:
            starts.append(text.index(word, end))
            end = starts[-1] + len(word)
    for kind, first, end in spans_of([tag or OUTSIDE for tag in tags]):
        score = fmean(scores[first:end])
        found.append({"type": kind, "text": " ".join(words[first:end]), "score": score, "words": [first, end]})
        if text is not None:
            start, stop = starts[first], starts[end - 1] + len(words[end - 1])
            found[-1] |= {"text": text[start:stop], "start": start, "end": stop}
    return found


def count_right(predicted: Sequence[str], gold: Sequence[str], *, spans: bool) -> tuple[int, int, int, int, int]:
    """Counts of one example.

    Args:
        predicted: Tags of each word.
        gold: Tags of the same words.
        spans: Whether tags mark spans; if not, each word outside ``O`` counts by itself.

    Returns:
        Predicted spans that are right, predicted spans, gold spans, words tagged right, words.

    >>> count_right(["B-town", "O", "B-town"], ["B-town", "I-town", "B-town"], spans=True)
    (1, 2, 2, 2, 3)
    """
    found, wanted = (
        set(spans_of(tags) if spans else ((tag, n, n + 1) for n, tag in enumerate(tags) if tag != OUTSIDE))
        for tags in (predicted, gold)
    )
    right = sum(one == other for one, other in zip(predicted, gold, strict=True))
    return len(found & wanted), len(found), len(wanted), right, len(gold)


def span_scores(counts_N5: Tensor, *, spans: bool) -> dict[str, Tensor]:
    """Metrics in per cent, micro-averaged: over all spans of all examples.

    Args:
        counts_N5: What `count_right` gave for each example.
        spans: Whether tags mark spans.

    Returns:
        ``f1`` and ``accuracy`` (of words), and of spans ``precision`` and ``recall``; 0 where nothing could be found.
    """
    right, found, wanted, right_words, words = counts_N5.sum(dim=0)
    scores = {"f1": _per_cent(2 * right, found + wanted), "accuracy": _per_cent(right_words, words)}
    if spans:
        scores |= {"precision": _per_cent(right, found), "recall": _per_cent(right, wanted)}
    return scores


def _per_cent(part: Tensor, whole: Tensor) -> Tensor:
    return 100 * part / torch.clamp(whole, min=1)
