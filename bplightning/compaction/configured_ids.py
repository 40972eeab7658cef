"""Numbers of tokens in the configurations of a model and of its generation: which it needs, and renumbering them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUFFIXES = ("_token_id", "_token_ids", "_token_index")
"""What the names of fields end in that hold tokens with a role: padding, begin, end, mask, forced, an image ..."""

NEEDED = ("force_words_ids", "lang_to_id", "task_to_id")
"""Other fields whose tokens are to be generated, at any depth of lists and dictionaries."""

BY_PLACE = "forced_decoder_ids"
"""A list of pairs of a place and the token that is forced there."""

SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens that are not to be generated; one that is gone cannot be."""

WORDS = "bad_words_ids"
"""A list of words, each a list of tokens, that are not to be generated."""

BIASED = "sequence_bias"
"""Lists of tokens with a number each: a dictionary, or a list of pairs."""

BY_TASK = "task_specific_params"
"""Task to fields of its own, the above among them."""

Fields = Mapping[str, Any]


def needed_ids(fields: Fields) -> set[int]:
    """The tokens that a configuration needs: all but those that it only keeps from being generated, or biases.

    Args:
        fields: The configuration's, as `vars` gives them.

    >>> sorted(needed_ids({"eos_token_id": [1, 2], "forced_decoder_ids": [[1, 7]], "suppress_tokens": [9]}))
    [1, 2, 7]
    """
    found: set[int] = set()
    for name, value in fields.items():
        if value is None:
            continue
        if name.endswith(SUFFIXES) or name in NEEDED:
            found |= _flat(value)
        elif name == BY_PLACE:
            found |= _flat([token for _, token in value])
        elif name == BY_TASK:
            found |= {token for own in value.values() for token in needed_ids(own)}
    return found


def renumbered(fields: Fields, new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Those fields of a configuration that hold tokens, with new numbers; a number that is no token's, -1, stays.

    Args:
        fields: The configuration's, as `vars` gives them.
        new_ids: Old number to new one, of all tokens that are kept.

    >>> renumbered({"pad_token_id": 5, "suppress_tokens": [5, 6], "hidden_size": 5}, {5: 0})
    {'pad_token_id': 0, 'suppress_tokens': [0]}
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name.endswith(SUFFIXES) or name in NEEDED:
            found[name] = _mapped(value, new_ids)
        elif name == BY_PLACE:
            found[name] = [[place, _mapped(token, new_ids)] for place, token in value]
        elif name in SUPPRESSED:
            found[name] = [new_ids[token] for token in value if token in new_ids]
        elif name == WORDS:  # a word with a token that is gone can no longer be written
            found[name] = [_mapped(word, new_ids) for word in value if _all_kept(word, new_ids)] or None
        elif name == BIASED and isinstance(value, dict):
            kept = {tokens: bias for tokens, bias in value.items() if _all_kept(tokens, new_ids)}
            found[name] = {tuple(_mapped(tokens, new_ids)): bias for tokens, bias in kept.items()} or None
        elif name == BIASED:
            pairs = [(tokens, bias) for tokens, bias in value if _all_kept(tokens, new_ids)]
            found[name] = [[_mapped(tokens, new_ids), bias] for tokens, bias in pairs] or None
        elif name == BY_TASK:
            found[name] = {task: own | renumbered(own, new_ids) for task, own in value.items()}
    return found


def _flat(value: Any) -> set[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return {token for part in value for token in _flat(part)}
    return set() if value is None else {value}


def _mapped(value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(each, new_ids) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(each, new_ids) for each in value]
    return new_ids.get(value, value)


def _all_kept(tokens: Any, new_ids: Mapping[int, int]) -> bool:
    return all(token in new_ids for token in tokens)
