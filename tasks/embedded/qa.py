"""A generated extractive question-answering set: the embedded default of the QA task.

Each question asks for one fact of a passage: see `passages`.
"""

from __future__ import annotations

import random
from typing import Any

from bplightning.tasks.embedded.passages import generate_passages

DEFAULT_SIZES = {"train": 5000, "validation": 500}


def generate(split: str, *, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Generate one split of the question-answering set, in SQuAD's flat form.

    Args:
        split: ``"train"`` or ``"validation"``; they share no name.
        size: Number of questions, each with a passage of its own; by default 5,000 and 500.
        seed: Seed; the same arguments give the same records in every process.

    Returns:
        Records with ``id``, ``title``, ``context``, ``question`` and ``answers`` (``text`` and ``answer_start``).

    Raises:
        ValueError: If `split` is unknown.
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"split is {split!r}, but the generated set has {sorted(DEFAULT_SIZES)}: name one of these")
    passages = generate_passages(split, size=DEFAULT_SIZES[split] if size is None else size, seed=seed)
    rng = random.Random(f"{split}-{seed}-questions")
    records = []
    for number, passage in enumerate(passages):
        fact = passage.facts[0]
        records.append(
            {
                "id": f"{split}-{seed}-{number}",
                "title": f"{passage.domain}: {fact.relation.name}",
                "context": passage.text,
                "question": rng.choice(fact.relation.questions).replace("{s}", fact.subject),
                "answers": {"text": [fact.answer], "answer_start": [fact.start]},
            }
        )
    return records
