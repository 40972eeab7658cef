"""ROUGE: how many words, pairs of words and sequences a summary shares with a reference (Lin 2004).

The scores are computed by the package `rouge-score`, which published numbers come from, with its stemmer. Two things
are our own:

- Its words are runs of the letters a to z, so a text in another script scores 0. Ours are runs of the letters of any
  script; of scripts that put no blanks between words (Chinese, Japanese, Thai ...) each character is a word. English
  scores the same, except for words with other letters (naïve), which the package takes apart.
- Its sentences for ROUGE-Lsum need a download. Ours end at line breaks, and after a full stop, question or exclamation
  mark before a capital letter or a digit, but not after common abbreviations and initials.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from bplightning.tasks.shared.unspaced_scripts import CHARACTER, UNSPACED

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
STEMMED_FROM = 4
"""Letters of the shortest word that is stemmed."""

# fmt: off
ABBREVIATIONS = frozenset((
    "al", "approx", "apr", "aug", "capt", "co", "col", "corp", "dec", "dr", "eq", "etc", "feb", "fig", "figs", "gen",
    "gov", "inc", "jan", "jr", "jul", "jun", "lt", "ltd", "mr", "mrs", "ms", "mt", "nov", "oct", "prof", "rep", "rev",
    "sen", "sep", "sept", "sgt", "sr", "st", "vs",
))
# fmt: on
"""What a full stop does not end a sentence after, in lower case."""

_WORD = regex.compile(rf"(?V1){CHARACTER}|[\p{{L}}\p{{Nd}}--[{UNSPACED}]][\p{{L}}\p{{Nd}}\p{{M}}--[{UNSPACED}]]*")
_END = regex.compile(
    r"[.!?؟।॥]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[\p{Lu}\p{Lo}\p{Nd}])|[。！？]+[”’」』）]*"  # the latter want no blank
)
_INITIALS = regex.compile(r"(?:\p{Ll}\.)*\p{Ll}")


def rouge(prediction: str, references: Sequence[str]) -> tuple[float, ...]:
    """F1 of ROUGE-1, -2, -L and -Lsum, each the highest over the references.

    Args:
        prediction: The summary.
        references: What it is compared with, at least one.

    Returns:
        Fractions, in the order of `NAMES`.

    >>> [round(value, 3) for value in rouge("A dog sees cats.", ["The cat saw a dog.", "A dog sees the cats."])]
    [0.889, 0.571, 0.889, 0.889]
    """
    predicted, *wanted = ("\n".join(sentences(text)) for text in (prediction, *references))
    scores = _scorer().score_multi(wanted, predicted)
    return tuple(float(scores[name].fmeasure) for name in NAMES)


def words(text: str) -> list[str]:
    """The words of a text, in lower case, longer ones stemmed as English.

    >>> words("The U.S. won 3 medals"), words("Новый мост"), words("新桥")
    (['the', 'u', 's', 'won', '3', 'medal'], ['новый', 'мост'], ['新', '桥'])
    """
    found = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
    return [_stem(word) if len(word) >= STEMMED_FROM else word for word in found]


def sentences(text: str) -> list[str]:
    r"""The sentences of a text.

    >>> sentences("Dr. Smith won. He is 3.5 m tall! Really? The U.S. champion\nlost")
    ['Dr. Smith won.', 'He is 3.5 m tall!', 'Really?', 'The U.S. champion', 'lost']
    """
    found = []
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            before = line[start : end.start()].rsplit(maxsplit=1)
            last = before[-1].lstrip("\"'“‘([").lower() if before else ""
            full_stop = end.group().startswith(".")
            if not (full_stop and (last in ABBREVIATIONS or (_INITIALS.fullmatch(last) and last != "i"))):
                found.append(line[start : end.end()].strip())
                start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


class _Words(Tokenizer):
    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(NAMES, tokenizer=_Words())


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return str(_STEMMER.stem(word))


_STEMMER = PorterStemmer()
