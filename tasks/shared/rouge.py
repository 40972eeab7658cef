"""ROUGE: how many words, pairs of words and sequences a summary shares with a reference (Lin 2004).

The numbers are those of the package that published ones come from, with its stemmer: words are runs of the letters a
to z and digits in lower case, so other scripts score nothing; longer words are stemmed as English. Where it wants a
download to find the sentences of ROUGE-Lsum, here they end at line breaks, and after a full stop, question or
exclamation mark before a capital letter or a digit, but not after common abbreviations and initials.

Legend: `P` words of the predicted, `R` of the reference text or sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from bplightning.tasks.shared.porter import stem

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

_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_INITIALS = re.compile(r"(?:[a-z]\.)*[a-z]")
_WORD = re.compile(r"[a-z0-9]+")


def rouge(prediction: str, references: Sequence[str]) -> tuple[float, ...]:
    """F1 of ROUGE-1, -2, -L and -Lsum, each that of the reference which it is highest with.

    Args:
        prediction: The summary.
        references: What it is compared with, one or several.

    Returns:
        Fractions, as `NAMES` names them.

    >>> [round(value, 3) for value in rouge("A dog sees cats.", ["The cat saw a dog.", "A dog sees the cats."])]
    [0.889, 0.571, 0.889, 0.889]
    """
    scores = [_scores(prediction, reference) for reference in references]
    return tuple(max(values) for values in zip(*scores, strict=True))


def words(text: str) -> list[str]:
    """The words of a text, in lower case, longer ones stemmed.

    >>> words("The U.S. won 3 medals")
    ['the', 'u', 's', 'won', '3', 'medal']
    """
    return [stem(word) if len(word) >= STEMMED_FROM else word for word in _WORD.findall(text.lower())]


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


def _scores(prediction: str, reference: str) -> tuple[float, ...]:
    predicted, wanted = words(prediction), words(reference)
    return (
        *(_f1(_shared(predicted, wanted, n), len(predicted) + 1 - n, len(wanted) + 1 - n) for n in (1, 2)),
        _f1(len(_common(predicted, wanted)), len(predicted), len(wanted)),
        _f1(
            _union([words(each) for each in sentences(prediction)], [words(each) for each in sentences(reference)]),
            len(predicted),
            len(wanted),
        ),
    )


def _f1(hits: int, predicted: int, wanted: int) -> float:
    return 2 * hits / (predicted + wanted) if hits else 0.0


def _shared(predicted: Sequence[str], wanted: Sequence[str], n: int) -> int:
    """How many runs of `n` words both have, each as often as in the one that has it less often."""
    first, second = (Counter(zip(*(text[start:] for start in range(n)), strict=False)) for text in (predicted, wanted))
    return (first & second).total()


def _union(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> int:
    """Words of the reference that some predicted sentence has in the order of a reference sentence.

    Each predicted word answers for one of them.
    """
    left = Counter(word for sentence in predicted for word in sentence)
    hits = 0
    for sentence in wanted:
        for place in sorted(set().union(*(_common(each, sentence) for each in predicted))):
            if left[sentence[place]] > 0:
                left[sentence[place]] -= 1
                hits += 1
    return hits


def _common(predicted: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Places in `wanted` of a longest common subsequence."""
    lengths = [[0] * (len(predicted) + 1)]  # (R + 1, P + 1)
    for word in wanted:
        above, row = lengths[-1], [0]
        for column, other in enumerate(predicted):
            row.append(above[column] + 1 if other == word else max(row[column], above[column + 1]))
        lengths.append(row)
    places = []
    r, p = len(wanted), len(predicted)
    while r and p:
        if wanted[r - 1] == predicted[p - 1]:
            r, p = r - 1, p - 1
            places.append(r)
        elif lengths[r][p - 1] > lengths[r - 1][p]:
            p -= 1
        else:
            r -= 1
    return places
