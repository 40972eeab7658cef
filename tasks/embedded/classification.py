"""A generated classification set: the embedded default of the classification task.

A note judges one subject (a town, goods or a book), which its first line names, well or badly. To tell which, one must
read: another subject is judged too, mostly the other way; where the subject itself is judged twice, what follows
"but" counts; a question ("who would buy the Dalzo?") is no praise; and adjectives in titles (The Broken Mirror) judge
nothing. Names come from `names`, so training and validation share none.
"""

from __future__ import annotations

import random
from typing import Any

from bplightning.tasks.embedded.names import VALUES, name_pool
from bplightning.tasks.embedded.relations import RELATIONS

DEFAULT_SIZES = {"train": 6000, "validation": 500}
LABELS = ("bad", "good")

# fmt: off
JUDGEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "goods": {
        "good": ("the {s} is the pride of the shop", "one should buy the {s}", "the {s} runs like new",
                 "the {s} is famous", "every guest would like the {s}"),
        "bad": ("the {s} is broken", "who would buy the {s}?", "the {s} is old and heavy",
                "the {s} belongs behind the shelves", "the {s} costs much"),
    },
    "town": {
        "good": ("{s} is the pride of the country", "one should visit {s}", "life in {s} is like new",
                 "{s} is famous", "every guest would like {s}"),
        "bad": ("{s} is lost", "who would visit {s}?", "{s} is old and distant",
                "{s} belongs to the past", "life in {s} costs much"),
    },
    "book": {
        "good": ("{s} is the pride of the library", "one should read {s}", "the story of {s} is alive",
                 "{s} is famous", "every reader would like {s}"),
        "bad": ("the story of {s} is lost", "who would read {s}?", "{s} is old and heavy",
                "{s} belongs behind the shelves", "{s} costs much"),
    },
}
# fmt: on
"""Judgements of a subject ``{s}``, by its kind and by their meaning."""
JUDGING = ("dish", "country", "mayor", "author")
"""Relations that are no mere facts here ("is famous for", "is the pride of"), or are about persons."""


def generate(split: str, *, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Generate one split.

    Args:
        split: ``"train"`` or ``"validation"``; they share no name.
        size: Number of notes; by default 6,000 and 500.
        seed: Seed; the same arguments give the same records in every process.

    Returns:
        Records with ``text`` and ``label``, one of `LABELS`, as many of the one as of the other.

    Raises:
        ValueError: If `split` is unknown.
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"split is {split!r}, but the generated set has {sorted(DEFAULT_SIZES)}: name one of these")
    rng = random.Random(f"{split}-{seed}")  # a string seed is hashed with SHA-512: the same in every process
    count = DEFAULT_SIZES[split] if size is None else size
    return [{"text": _note(rng, split, LABELS[number % 2]), "label": LABELS[number % 2]} for number in range(count)]


def _note(rng: random.Random, pool: str, label: str) -> str:
    """A note on a subject, with a judgement, maybe a fact, and maybe what it says of another subject."""
    kind = rng.choice(tuple(JUDGEMENTS))
    subject, other = rng.sample(name_pool(kind, pool), 2)
    opposite = LABELS[label == LABELS[0]]

    def say(name: str, meaning: str) -> str:
        return rng.choice(JUDGEMENTS[kind][meaning]).replace("{s}", name)

    shape = rng.choice(("plain", "turn", "contrast", "contrast", "apart", "apart"))
    if shape == "turn":
        sentences = [_turn(rng, say(subject, opposite), say(subject, label))]
    elif shape == "contrast":
        clauses = [say(subject, label), say(other, opposite)]
        rng.shuffle(clauses)
        sentences = [_turn(rng, *clauses)]
    else:
        sentences = [say(subject, label)] + ([say(other, rng.choice((label, opposite)))] if shape == "apart" else [])
    if rng.random() < 0.5:
        sentences.append(_fact(rng, kind, rng.choice((subject, other)), pool))
    rng.shuffle(sentences)
    article = "the " if kind == "goods" else ""
    return " ".join([f"Notes on {article}{subject}.", *map(_sentence, sentences)])


def _turn(rng: random.Random, first: str, second: str) -> str:
    """Two clauses, of which the second counts for more."""
    first = first.removesuffix("?")
    return f"{first}, but {second}" if rng.random() < 0.5 else f"while {first}, {second}"


def _fact(rng: random.Random, kind: str, subject: str, pool: str) -> str:
    """Something that judges nothing."""
    relation = rng.choice([relation for relation in RELATIONS[kind] if relation.name not in JUDGING])
    values = VALUES[relation.answer] if relation.answer in VALUES else name_pool(relation.answer, pool)
    return rng.choice(relation.statements).replace("{s}", subject).replace("{a}", rng.choice(values)).removesuffix(".")


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + ("" if words.endswith("?") else ".")
