"""Which columns a task reads, and records under the names that the data has."""

from __future__ import annotations

from typing import Any

import pytest

from bplightning.tasks.shared.wanted_columns import Wanted


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": 1, "review": "a", "stars": 5}, "a"),
        ({"text": "a"}, "a"),  # the task's own name is understood too
        ({"text": "b", "review": "a"}, "a"),
        ({"other": "a"}, None),
    ],
)
def test_a_record_has_the_names_of_the_data_or_of_the_task(record: dict[str, Any], expected: str | None) -> None:
    assert Wanted({"text": False}, {"text": "review"}).own_record(record).get("text") == expected


def test_names_may_be_swapped() -> None:
    swapped = Wanted({"text": False, "text_pair": True}, {"text": "text_pair", "text_pair": "text"})
    assert swapped.own_record({"text": "a", "text_pair": "b"}) == {"text": "b", "text_pair": "a"}
    assert swapped.own_record({"text": "a"}) == {"text_pair": "a"}  # which is not the task's text
