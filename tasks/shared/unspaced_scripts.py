"""Scripts that put no blanks between words: each character is counted as a word there, as MLQA does for Chinese."""

from __future__ import annotations

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Their characters, for the inside of a character class of `regex`."""

CHARACTER = rf"[{UNSPACED}--\p{{M}}]\p{{M}}*"
"""One character with the marks that belong to it; needs the flag V1."""

_ANY = regex.compile(f"[{UNSPACED}]")
_PARTS = regex.compile(rf"(?V1){CHARACTER}|[^{UNSPACED}]+|.")


def has_unspaced(text: str) -> bool:
    """Whether a text has characters of these scripts."""
    return not text.isascii() and _ANY.search(text) is not None


def parts(word: str) -> list[str]:
    """A word as it stands between blanks, cut into characters where its script has no blanks.

    >>> parts("river"), parts("北京2008年"), parts("ที่นี่"), parts("नदी")
    (['river'], ['北', '京', '2008', '年'], ['ที่', 'นี่'], ['नदी'])
    """
    return _PARTS.findall(word) if has_unspaced(word) else [word]
