"""Made-up names and values, in pools that share no name.

Names are composed of an opening syllable and an ending that belongs to the kind of name. Both are numbered, and the
sum of the two numbers modulo three says which pool owns the name: ``pretraining``, ``train`` or ``validation``. So the
pools share every syllable and no name, by construction: a model that scores on ``validation`` looks names up.
"""

from __future__ import annotations

import random
from functools import cache

POOLS = ("pretraining", "train", "validation")

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


def distinct(rng: random.Random, kind: str, pool: str, count: int) -> list[str]:
    """Draw different names or values of one kind.

    Args:
        rng: What to draw with.
        kind: As in `name_pool`, ``"person"``, or a key of `VALUES`.
        pool: Whose names to use, one of `POOLS`.
        count: How many.
    """
    if kind == "person":
        given, family = (rng.sample(name_pool(part, pool), count) for part in ("given", "family"))
        return [f"{g} {f}" for g, f in zip(given, family, strict=True)]
    return rng.sample(VALUES[kind] if kind in VALUES else name_pool(kind, pool), count)
