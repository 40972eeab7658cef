"""A generated extractive question-answering set: the embedded default of the QA task.

Each passage states facts about several subjects of one domain (people, companies, towns, goods, books); the question
asks for one fact of one subject. The passage also states the asked relation of at least two other subjects and another
relation of the asked subject, so neither the type of the answer nor the subject alone finds it: both are looked up.

Names are composed of an opening syllable and an ending that belongs to the kind of name. Both are numbered, and the
sum of the two numbers modulo three says which pool owns the name: ``pretraining``, ``train`` or ``validation``. So the
pools share every syllable and no name, by construction: a model that scores on ``validation`` looks names up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

POOLS = ("pretraining", "train", "validation")
DEFAULT_SIZES = {"train": 5000, "validation": 500}

# Three letters each, so that the border between opening and ending is never in doubt and no two pairs spell one name.
OPENINGS = tuple(c + v + e for c in "bdfghklmnprstv" for v in "aeiou" for e in "lnr")
ENDINGS = {
    "given": ("a", "o", "ia", "ek", "is", "ina", "us", "ette", "iel"),
    "family": ("wick", "son", "berg", "man", "ski", "etti", "worth", "quist", "dez"),
    "town": ("ford", "ville", "burg", "mouth", "holm", "ton", "field", "haven", "bridge"),
    "company": ("tek", "corp", "soft", "co", "tron", "gen", "max", "plex", "dyne"),
    "river": ("ow", "ey", "une", "ith", "ault", "arno"),
    "country": ("land", "stan", "onia", "mark", "reich", "ovia"),
    "goods": ("ix", "ello", "ster", "pod", "zo", "kit"),
}
# fmt: off
ADJECTIVES = ("silver", "broken", "hidden", "golden", "silent", "last", "lost", "distant", "burning", "frozen",
              "secret", "ancient")
NOUNS = ("lantern", "garden", "mirror", "harbour", "winter", "letter", "tower", "island", "orchard", "bell", "shadow",
         "road")
# fmt: on
VALUES: dict[str, tuple[str, ...]] = {
    "year": tuple(str(year) for year in range(1901, 2020)),
    "price": tuple(f"{amount} dollars" for amount in range(11, 99)),
    "weight": tuple(f"{amount} grams" for amount in range(110, 990, 10)),
    "colour": ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "pink", "grey"),
    "instrument": ("piano", "violin", "flute", "guitar", "trumpet", "harp", "drum", "cello", "organ", "oboe"),
    "trade": ("glass", "paper", "boats", "shoes", "clocks", "bread", "steel", "toys", "lamps", "carpets", "soap"),
    "dish": ("soup", "cheese", "dumplings", "pancakes", "pickles", "sausage", "noodles", "honey", "plums", "trout"),
    "language": ("french", "german", "spanish", "latin", "greek", "danish", "polish", "welsh", "dutch", "finnish"),
}


@dataclass(frozen=True)
class Relation:
    """One relation: how a passage states it and how a question asks for it.

    Attributes:
        name: The relation's name, also its label in a listing.
        answer: The kind of the answer, a key of the name kinds or of `VALUES`.
        statements: Sentences with ``{s}`` (subject) and ``{a}`` (answer).
        questions: Questions with ``{s}``; some share no content word with the statements.
    """

    name: str
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


# fmt: off
RELATIONS: dict[str, tuple[Relation, ...]] = {
    "person": (
        Relation("birthplace", "town",
                 ("{s} was born in {a}.", "The birthplace of {s} is {a}.", "{s} is a native of {a}."),
                 ("Where was {s} born?", "What is the birthplace of {s}?", "Where does {s} come from?")),
        Relation("home", "town",
                 ("{s} lives in {a}.", "{s} has a home in {a}.", "{s} resides in {a}."),
                 ("Where does {s} live?", "In which town is the home of {s}?", "Where would one visit {s} today?")),
        Relation("employer", "company",
                 ("{s} works for {a}.", "{s} is employed by {a}.", "{s} has a job at {a}."),
                 ("Who does {s} work for?", "Which company employs {s}?", "Who pays the salary of {s}?")),
        Relation("birth year", "year",
                 ("{s} was born in the year {a}.", "The birth year of {s} is {a}.", "The life of {s} began in {a}."),
                 ("When was {s} born?", "What is the birth year of {s}?", "Since when has {s} been alive?")),
        Relation("instrument", "instrument",
                 ("{s} plays the {a}.", "The instrument of {s} is the {a}.", "{s} practises the {a} every day."),
                 ("What does {s} play?", "Which instrument does {s} practise?", "On what does {s} make music?")),
    ),
    "company": (
        Relation("founder", "person",
                 ("{s} was founded by {a}.", "The founder of {s} is {a}.", "{s} was set up by {a}."),
                 ("Who founded {s}?", "Who is the founder of {s}?", "Who got {s} started?")),
        Relation("director", "person",
                 ("The director of {s} is {a}.", "{s} is led by {a}.", "{s} is managed by {a}."),
                 ("Who leads {s}?", "Who is the director of {s}?", "Who is the boss at {s}?")),
        Relation("seat", "town",
                 ("{s} is based in {a}.", "The seat of {s} is in {a}.", "{s} has offices in {a}."),
                 ("Where is {s} based?", "In which town is the seat of {s}?", "Where can one find {s}?")),
        Relation("founding year", "year",
                 ("{s} was founded in {a}.", "{s} opened in the year {a}.", "The founding year of {s} is {a}."),
                 ("When was {s} founded?", "In what year did {s} open?", "Since when does {s} exist?")),
        Relation("trade", "trade",
                 ("{s} makes {a}.", "{s} is a producer of {a}.", "The workshops of {s} turn out {a}."),
                 ("What does {s} make?", "What is {s} a producer of?", "What would one buy from {s}?")),
    ),
    "town": (
        Relation("river", "river",
                 ("{s} lies on the {a}.", "Through {s} flows the {a}.", "{s} stands beside the river {a}."),
                 ("Which river flows through {s}?", "On which river does {s} lie?", "What water runs past {s}?")),
        Relation("country", "country",
                 ("{s} is a town in {a}.", "{s} belongs to {a}.", "{s} is the pride of {a}."),
                 ("In which country is {s}?", "What country does {s} belong to?", "Which nation governs {s}?")),
        Relation("mayor", "person",
                 ("The mayor of {s} is {a}.", "{s} elected {a} as mayor.", "{s} chose {a} as mayor."),
                 ("Who is the mayor of {s}?", "Who was elected in {s}?", "Who heads the town hall of {s}?")),
        Relation("dish", "dish",
                 ("{s} is famous for {a}.", "The inns of {s} serve {a}.", "The dish of {s} is {a}."),
                 ("What is {s} famous for?", "What do the inns of {s} serve?", "What should a guest eat in {s}?")),
        Relation("first record", "year",
                 ("{s} was first recorded in {a}.", "The first record of {s} is from {a}.", "{s} dates from {a}."),
                 ("When was {s} first recorded?", "From when does {s} date?", "How old is {s}?")),
    ),
    "goods": (
        Relation("colour", "colour",
                 ("The {s} is {a}.", "The {s} comes in {a}.", "The colour of the {s} is {a}."),
                 ("What colour is the {s}?", "In what colour does the {s} come?", "What does the {s} look like?")),
        Relation("price", "price",
                 ("The {s} costs {a}.", "The price of the {s} is {a}.", "The {s} sells for {a}."),
                 ("What does the {s} cost?", "What is the price of the {s}?", "How much money is the {s}?")),
        Relation("maker", "company",
                 ("The {s} is made by {a}.", "The maker of the {s} is {a}.", "The {s} is built by {a}."),
                 ("Who makes the {s}?", "Who is the maker of the {s}?", "Which company is behind the {s}?")),
        Relation("weight", "weight",
                 ("The {s} weighs {a}.", "The weight of the {s} is {a}.", "On a scale the {s} shows {a}."),
                 ("What does the {s} weigh?", "What is the weight of the {s}?", "How heavy is the {s}?")),
    ),
    "book": (
        Relation("author", "person",
                 ("{s} was written by {a}.", "The author of {s} is {a}.", "{s} is the work of {a}."),
                 ("Who wrote {s}?", "Who is the author of {s}?", "From whose pen is {s}?")),
        Relation("year", "year",
                 ("{s} appeared in {a}.", "{s} was published in the year {a}.", "{s} is a book of {a}."),
                 ("When did {s} appear?", "In what year was {s} published?", "When could one first read {s}?")),
        Relation("setting", "town",
                 ("{s} is set in {a}.", "The story of {s} takes place in {a}.", "The scene of {s} is {a}."),
                 ("Where is {s} set?", "Where does the story of {s} take place?", "Where do the events in {s} occur?")),
        Relation("publisher", "company",
                 ("{s} was published by {a}.", "The publisher of {s} is {a}.", "{s} was printed by {a}."),
                 ("Who published {s}?", "Which company printed {s}?", "Who brought {s} to the shops?")),
        Relation("language", "language",
                 ("{s} is written in {a}.", "The language of {s} is {a}.", "{s} was told in {a}."),
                 ("What language is {s} in?", "What is the language of {s}?", "What must readers of {s} know?")),
    ),
}
# fmt: on
OPENING_LINES = {
    "person": ("Some short lives.", "News of the neighbours.", "From the parish book."),
    "company": ("Notice to all traders.", "The business page reports.", "From the trade register."),
    "town": ("Notes from a journey.", "A guide for travellers.", "Postcards from abroad."),
    "goods": ("New in the shop.", "The autumn catalogue.", "Today on the market."),
    "book": ("From the library shelves.", "Books of the month.", "A reader reports."),
}


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


@cache
def name_pool(kind: str, pool: str) -> tuple[str, ...]:
    """All names of one kind that belong to one pool.

    Args:
        kind: A key of `ENDINGS`, or ``"book"`` for titles.
        pool: One of `POOLS`.

    Returns:
        The names; no two pools share one.
    """
    openings, endings = (ADJECTIVES, NOUNS) if kind == "book" else (OPENINGS, ENDINGS[kind])
    pairs = (
        (i, j) for i in range(len(openings)) for j in range(len(endings)) if (i + j) % len(POOLS) == POOLS.index(pool)
    )
    if kind == "book":
        return tuple(f"The {openings[i].capitalize()} {endings[j].capitalize()}" for i, j in pairs)
    return tuple((openings[i] + endings[j]).capitalize() for i, j in pairs)


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


def _passage(rng: random.Random, pool: str, bounds: tuple[int, int]) -> Passage:
    """A passage: one relation stated of every subject, others of some, in one of the shapes."""
    domain = rng.choice(tuple(RELATIONS))
    asked, *others = rng.sample(RELATIONS[domain], 3)
    subjects = _distinct(rng, domain, pool, min(rng.choice((3, 3, 4)), bounds[1]))
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
            (s, relation, a) for s, a in zip(holders, _distinct(rng, relation.answer, pool, len(holders)), strict=True)
        ]
    question = pieces[0]
    rng.shuffle(pieces)
    text, facts = rng.choice(_SHAPES)(rng, pool, domain, pieces)
    first = next(fact for fact in facts if (fact.subject, fact.relation) == question[:2])
    return Passage(domain, text, (first, *(fact for fact in facts if fact is not first)))


def _distinct(rng: random.Random, kind: str, pool: str, count: int) -> list[str]:
    """`count` different names or values of one kind."""
    if kind == "person":
        given, family = (rng.sample(name_pool(part, pool), count) for part in ("given", "family"))
        return [f"{g} {f}" for g, f in zip(given, family, strict=True)]
    return rng.sample(VALUES[kind] if kind in VALUES else name_pool(kind, pool), count)


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
