"""Answers found by trying everything, to compare with; and logits to find them in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from bplightning.tasks.squad.answers import Spans, find_spans
from bplightning.tasks.squad.features import POSITIONS

Logits = tuple[Tensor, Tensor]


def random_logits(count: int, length: int = 32, *, seed: int = 0) -> Logits:
    """Start and end logits of `count` windows."""
    start, end = 3 * torch.randn(2, count, length, generator=torch.Generator().manual_seed(seed))
    return start, end


def step(features: Dataset, rows: list[int], logits: Logits) -> tuple[Any, dict[str, Tensor]]:
    """The model's outputs and the batch of those features, whose logits are those rows."""
    batch = {name: torch.tensor(features.select(rows)[name][:]) for name in POSITIONS}
    return SimpleNamespace(start_logits=logits[0][rows], end_logits=logits[1][rows]), batch


def spans_of(features: Dataset, rows: list[int], logits: Logits, **limits: int) -> Spans:
    """What is kept of those features."""
    return find_spans(*step(features, rows, logits), **({"max_answer_length": 5, "n_best": 4} | limits))


def all_spans(features: Dataset, index: int, logits: Logits, *, width: int) -> dict[tuple[int, int], float]:
    """First and last character of every span of an example to its best score, by trying all of them."""
    found: dict[tuple[int, int], float] = {}
    for row, window in enumerate(features.to_list()):
        if window["example_index"] != index:
            continue
        first, count = window["context_start"], len(window["char_start_C"])
        for i in range(count):
            for j in range(i, min(i + width, count)):
                key = (window["char_start_C"][i], window["char_end_C"][j])
                score = float(logits[0][row, first + i] + logits[1][row, first + j])
                found[key] = max(score, found.get(key, score))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def least_null_score(features: Dataset, index: int, logits: Logits) -> float:
    """An example's score of no answer; BERT's CLS comes first."""
    rows = [row for row, of in enumerate(features["example_index"]) if of == index]
    return min(float(logits[0][row, 0] + logits[1][row, 0]) for row in rows)
