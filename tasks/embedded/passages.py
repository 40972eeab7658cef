"""Generated passages, each with the facts that it states about several subjects of one domain.

A passage states one relation of at least two other subjects too, and another relation of the first subject, so neither
the type of an answer nor the subject alone finds it: both must be looked up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bplightning.tasks.embedded.names import distinct, name_pool
from bplightning.tasks.embedded.relations import OPENING_LINES, RELATIONS, Relation


@dataclass(frozen=True)
class Fact:
    """One fact of a passage; `start` is the answer's first character in the passage."""

    subject: str
    relation: Relation
    answer: str
    start: int


@dataclass(frozen=True)
class Passage:
    """A passage and the facts it states; the first fact is the one to ask for."""

    domain: str
    text: str
    facts: tuple[Fact, ...]


def generate_passages(pool: str, *, size: int, seed: int = 0, facts: tuple[int, int] = (5, 7)) -> list[Passage]:
    """Generate passages, without questions.

    Args:
        pool: Whose names to use, one of `POOLS`.
        size: Number of passages.
        seed: Seed; the same arguments give the same passages in every process.
        facts: Fewest and most facts in a passage, from 3 (then all state one relation) to 9.

    Returns:
        The passages.
    """
    rng = random.Random(f"{pool}-{seed}")  # a string seed is hashed with SHA-512: the same in every process
    return [_passage(rng, pool, facts) for _ in range(size)]


def _passage(rng: random.Random, pool: str, bounds: tuple[int, int]) -> Passage:
    """A passage: one relation stated of every subject, others of some, in one of the shapes."""
    domain = rng.choice(tuple(RELATIONS))
    asked, *others = rng.sample(RELATIONS[domain], 3)
    subjects = distinct(rng, domain, pool, min(rng.choice((3, 3, 4)), bounds[1]))
    total = max(rng.randint(*bounds), len(subjects))
    stated = [(subject, asked) for subject in subjects]
    # The asked subject gets the second relation first; what is left goes to anybody.
    extra = [(subject, relation) for subject in subjects for relation in others]
    extra = extra[:1] + rng.sample(extra[1:], len(extra) - 1)
    stated += extra[: total - len(stated)]
    pieces = []
    for relation in (asked, *others):
        holders = [subject for subject, held in stated if held is relation]
        pieces += [
            (s, relation, a) for s, a in zip(holders, distinct(rng, relation.answer, pool, len(holders)), strict=True)
        ]
    question = pieces[0]
    rng.shuffle(pieces)
    text, facts = rng.choice(_SHAPES)(rng, pool, domain, pieces)
    first = next(fact for fact in facts if (fact.subject, fact.relation) == question[:2])
    return Passage(domain, text, (first, *(fact for fact in facts if fact is not first)))


# -- shapes: each writes the same facts in another form ----------------------------------------------------------------

_Piece = tuple[str, Relation, str]
_Written = tuple[str, tuple[Fact, ...]]


class _Writer:
    """Collects text and remembers where each answer begins."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.facts: list[Fact] = []

    def add(self, template: str, piece: _Piece | None = None) -> None:
        """Append `template`, with subject and answer of `piece` filled in."""
        if piece is None:
            self.text += template
            return
        subject, relation, answer = piece
        before, after = template.replace("{s}", subject).split("{a}")
        self.facts.append(Fact(subject, relation, answer, len(self.text) + len(before)))
        self.text += before + answer + after

    def result(self) -> _Written:
        """The text and its facts."""
        return self.text, tuple(self.facts)


def _report(rng: random.Random, pool: str, domain: str, pieces: list[_Piece]) -> _Written:
    """An opening line, then one sentence a fact."""
    writer = _Writer(rng.choice(OPENING_LINES[domain]))
    for piece in pieces:
        writer.add(" " + rng.choice(piece[1].statements), piece)
    return writer.result()


def _joined(rng: random.Random, pool: str, domain: str, pieces: list[_Piece]) -> _Written:
    """Two facts a sentence, often of different subjects."""
    writer = _Writer()
    for number, piece in enumerate(pieces):
        statement = rng.choice(piece[1].statements)
        if number % 2:
            statement = statement.replace("The ", "the ") if statement.startswith("The ") else statement
            writer.add(rng.choice((", while ", ", and ", ", but ")) + statement, piece)
        else:
            closing = len(pieces) == number + 1
            writer.add((" " if number else "") + (statement if closing else statement.removesuffix(".")), piece)
    return writer.result()


def _dialogue(rng: random.Random, pool: str, domain: str, pieces: list[_Piece]) -> _Written:
    """Two speakers take turns."""
    speakers = rng.sample(name_pool("given", pool), 2)
    writer = _Writer()
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            writer.add((" " if number else "") + f"{speakers[number // 2 % 2]}:")
        writer.add(" " + rng.choice(piece[1].statements), piece)
    return writer.result()


def _listing(rng: random.Random, pool: str, domain: str, pieces: list[_Piece]) -> _Written:
    """One entry a subject, with labels instead of sentences."""
    writer = _Writer(rng.choice(OPENING_LINES[domain]))
    for subject in dict.fromkeys(piece[0] for piece in pieces):
        lead = f" {subject} - "
        for piece in (piece for piece in pieces if piece[0] == subject):
            writer.add(f"{lead}{piece[1].name}: {{a}}", piece)
            lead = "; "
        writer.add(".")
    return writer.result()


_Shape = Callable[[random.Random, str, str, list[_Piece]], _Written]
# Listings are the easiest to read, so they are the rarest.
_SHAPES: tuple[_Shape, ...] = (_report, _report, _joined, _joined, _dialogue, _dialogue, _listing)
