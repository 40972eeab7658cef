"""Porter's stemmer for English words, which published ROUGE numbers are computed with.

The algorithm is M. F. Porter's of 1980, "An algorithm for suffix stripping", with the departures that the stemmer
behind the common ROUGE package makes: irregular words, ``-ies`` and ``-ied`` of short words, ``-y`` after a consonant
only, and ``-fulli`` and ``-logi`` as suffixes. A word is a row of consonants (c) and vowels (v); its measure is how
often a consonant follows a vowel in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

IRREGULAR = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}
PLURALS = {"sses": "ss", "ies": "i", "ss": "ss", "s": ""}
DERIVED = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "fulli": "ful",
    "logi": "log",
}
QUALITIES = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
# fmt: off
ENDINGS = ("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate",
           "iti", "ous", "ive", "ize")
# fmt: on


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a word.

    Args:
        word: In lower case.

    >>> [stem(word) for word in ("summarization", "summaries", "ponies", "hopping", "relational")]
    ['summar', 'summari', 'poni', 'hop', 'relat']
    """
    if word in IRREGULAR or len(word) <= 2:
        return IRREGULAR.get(word, word)
    short = len(word) == 4
    word = word[:-1] if short and word.endswith("ies") else _replaced(word, PLURALS)
    word = _without_past(word)
    if word.endswith("y") and len(word) > 2 and _shape(word[:-1])[-1] == "c":
        word = word[:-1] + "i"
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        word = word[:-2]  # which may uncover -ational
    # -logi is judged with its l.
    word = _replaced(word, DERIVED, lambda rest, suffix: _measure(rest + ("l" if suffix == "logi" else "")) > 0)
    word = _replaced(word, QUALITIES, lambda rest, _: _measure(rest) > 0)
    word = _replaced(
        word,
        dict.fromkeys(ENDINGS, ""),
        lambda rest, suffix: _measure(rest) > 1 and (suffix != "ion" or rest[-1] in "st"),
    )
    if word.endswith("e"):
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _ends_short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _without_past(word: str) -> str:
    """A verb without ``-ed`` or ``-ing``."""
    if word.endswith("ied"):
        return word[:-3] + ("ie" if len(word) == 4 else "i")
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    rest = next((word.removesuffix(end) for end in ("ed", "ing") if word.endswith(end)), "")
    if "v" not in _shape(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _shape(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _ends_short(rest) else rest


def _replaced(
    word: str, suffixes: Mapping[str, str], condition: Callable[[str, str], bool] = lambda rest, suffix: True
) -> str:
    """The word with the first of the suffixes that it has replaced, if what is before that fulfils the condition."""
    for suffix, replacement in suffixes.items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + replacement if condition(rest, suffix) else word
    return word


def _shape(word: str) -> str:
    """Its letters as c and v; y is a vowel after a consonant.

    >>> _shape("syzygy")
    'cvcvcv'
    """
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape[-1:] == "c") else "c"
    return shape


def _measure(word: str) -> int:
    return _shape(word).count("vc")


def _ends_short(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last not w, x or y; or is vowel, consonant."""
    shape = _shape(word)
    return shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")
