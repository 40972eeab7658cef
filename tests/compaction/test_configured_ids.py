"""Numbers of tokens in configurations: every field that transformers has for them, at any depth."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from bplightning.compaction.configured_ids import (
    BIASED,
    BY_PLACE,
    NEEDED,
    SUFFIXES,
    SUPPRESSED,
    WORDS,
    needed_ids,
    renumbered,
)

NEW = {1: 0, 5: 1, 9: 2}
"""Of the tokens 0 to 9 these three are kept."""


@pytest.mark.parametrize(
    ("name", "value", "expected", "needed"),
    [
        ("pad_token_id", 5, 1, {5}),
        ("pad_token_id", -1, -1, {-1}),  # none
        ("eos_token_id", [5, 9], [1, 2], {5, 9}),
        ("decoder_start_token_id", [[5], [9]], [[1], [2]], {5, 9}),
        ("forced_bos_token_id", 9, 2, {9}),
        ("image_token_index", 9, 2, {9}),
        ("force_words_ids", [[[5], [9, 1]], [1]], [[[1], [2, 0]], [0]], {1, 5, 9}),
        ("lang_to_id", {"<|en|>": 5}, {"<|en|>": 1}, {5}),
        ("forced_decoder_ids", [[1, 9], [5, None]], [[1, 2], [5, None]], {9}),  # the first of each is a place
        ("suppress_tokens", [5, 6], [1], set()),
        ("begin_suppress_tokens", (9, 0), [2], set()),
        ("bad_words_ids", [[5], [5, 6]], [[1]], set()),
        ("bad_words_ids", [[6]], None, set()),
        ("sequence_bias", [[[5, 9], -1.0], [[6], 2.0]], [[[1, 2], -1.0]], set()),
        ("sequence_bias", {(5, 9): -1.0, (6,): 2.0}, {(1, 2): -1.0}, set()),
        ("task_specific_params", {"a": {"eos_token_id": 5, "n": 9}}, {"a": {"eos_token_id": 1, "n": 9}}, {5}),
    ],
)
def test_a_field_is_renumbered_and_says_what_it_needs(name: str, value: Any, expected: Any, needed: set[int]) -> None:
    fields = {name: value, "max_length": 5, "unset_token_id": None}
    assert renumbered(fields, NEW) == {name: expected}
    assert needed_ids(fields) == needed


def test_every_field_of_transformers_that_holds_tokens_is_known() -> None:
    """A field that a later version adds is looked at once, by hand."""
    names = {name for name in vars(GenerationConfig()) if name.endswith(("_id", "_ids", "_tokens", "_index", "_bias"))}
    counts = {"max_new_tokens", "min_new_tokens", "num_assistant_tokens", "prompt_lookup_num_tokens"}
    known = {*NEEDED, *SUPPRESSED, BY_PLACE, WORDS, BIASED}
    assert not {name for name in names - counts - known if not name.endswith(SUFFIXES)}
