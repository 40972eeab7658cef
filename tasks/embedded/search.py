"""A generated set of questions and the passages that answer them: the embedded default of the tasks for search.

A passage states facts about two or three subjects, in the forms of `passages`; a question asks for one of them. Other
passages of the set are about like things, so the names in a question must be found, and what it asks for understood.
"""

from __future__ import annotations

import random
from typing import Any

from bplightning.tasks.embedded.passages import generate_passages

DEFAULT_SIZES = {"train": 6000, "validation": 400}
QUERIES = {"train": 1500, "validation": 100}
"""Questions with candidates."""


def generate(split: str, *, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Generate one split.

    Args:
        split: ``"train"`` or ``"validation"``; they share no name.
        size: Number of questions, each with a passage of its own; by default 6,000 and 400.
        seed: Seed; the same arguments give the same records in every process.

    Returns:
        Records with ``text``, the question, and ``text_pair``, the passage.

    Raises:
        ValueError: If `split` is unknown.
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"split is {split!r}, but the generated set has {sorted(DEFAULT_SIZES)}: name one of these")
    count = DEFAULT_SIZES[split] if size is None else size
    rng = random.Random(f"search-{split}-{seed}")
    records: list[dict[str, Any]] = []
    stated: set[tuple[str, str]] = set()
    for passage in generate_passages(split, size=4 * count, seed=seed, facts=(3, 4)):
        facts = {(fact.subject, fact.relation.name) for fact in passage.facts}
        if split == "validation" and facts & stated:  # one passage answers each question
            continue
        stated |= facts
        fact = rng.choice(passage.facts)
        question = rng.choice(fact.relation.questions).replace("{s}", fact.subject)
        records.append({"text": question, "text_pair": passage.text})
        if len(records) == count:
            break
    return records


def generate_candidates(split: str, *, candidates: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Generate questions with passages that may answer them.

    Args:
        split: ``"train"`` or ``"validation"``; they share no name.
        candidates: Passages of a question; the first one answers it.
        seed: Seed; the same arguments give the same records in every process.

    Returns:
        Records with ``text``, the question, ``text_pair``, a passage, and ``label``, 1 where that answers it, else 0.
    """
    pairs = generate(split, size=QUERIES.get(split), seed=seed)
    rng = random.Random(f"candidates-{split}-{seed}")
    records: list[dict[str, Any]] = []
    for pair in pairs:
        others = [each["text_pair"] for each in rng.sample(pairs, 20) if each is not pair]
        # Those with most of the question's words come first: what is left to tell apart is who is asked about.
        words = set(pair["text"].rstrip("?").split())
        shared = {text: len(words & set(text.replace(".", "").split())) for text in others}
        others.sort(key=shared.__getitem__, reverse=True)
        passages = [pair["text_pair"], *others[: candidates - 1]]
        records += [{"text": pair["text"], "text_pair": text, "label": float(text == passages[0])} for text in passages]
    return records
