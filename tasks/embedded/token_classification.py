"""A generated set of passages whose names are tagged by kind: the embedded default of token classification."""

from __future__ import annotations

import re
from typing import Any

from bplightning.tasks.embedded.names import VALUES, name_pool
from bplightning.tasks.embedded.passages import Passage, generate_passages

SIZES = {"train": 2000, "validation": 400}
"""Passages of each split."""


def generate(split: str, *, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Generate one split.

    Args:
        split: ``"train"`` or ``"validation"``; they share no name.
        size: Number of passages; by default as `SIZES` says.
        seed: Seed; the same arguments give the same records in every process.

    Returns:
        Records with ``tokens`` (words and punctuation marks) and ``tags`` (``B-town``, ``I-person``, ``O``, ...).
    """
    passages = generate_passages(split, size=SIZES[split] if size is None else size, seed=seed)
    speakers = frozenset(name_pool("given", split))
    return [_tagged(passage, speakers) for passage in passages]


def _tagged(passage: Passage, speakers: frozenset[str]) -> dict[str, Any]:
    """The words of a passage; its names are those its facts tell of, and the speakers of a dialogue."""
    kinds = {fact.subject: passage.domain for fact in passage.facts}
    kinds |= {fact.answer: fact.relation.answer for fact in passage.facts if fact.relation.answer not in VALUES}
    words = [(match.group(), *match.span()) for match in re.finditer(r"\w+|[^\w\s]", passage.text)]
    tags = {start: "B-person" for word, start, _ in words if word in speakers}
    for name, kind in kinds.items():
        for match in re.finditer(re.escape(name), passage.text):
            inside = [start for _, start, end in words if match.start() <= start and end <= match.end()]
            tags |= {start: f"{'I' if number else 'B'}-{kind}" for number, start in enumerate(inside)}
    return {"tokens": [word for word, _, _ in words], "tags": [tags.get(start, "O") for _, start, _ in words]}
