"""The contract, and what the stars of a review promise beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bplightning_star_rating.star_rating import StarRating

from bplightning.errors import UserError
from bplightning.plugins import TASKS, load
from bplightning.testing import TaskContract


class TestStarRating(TaskContract):
    task = StarRating
    records = ({"text": "The ferry was dull."}, {"text": "Good."}, {"text": "The tea was good, the queue was bad."})


def test_installing_it_is_enough() -> None:
    assert load(TASKS, "star-rating") is StarRating


@pytest.mark.parametrize("stars", ["6", "0.5", "null", '"many"'])
def test_stars_that_cannot_be_are_named(tmp_path: Path, stars: str) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text(f'{{"text": "Good.", "stars": {stars}}}\n')
    task = StarRating(model=StarRating().model, validation_file=str(file), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"example 1 of .*reviews\.jsonl' has .* stars; it must be a number"):
        task.setup("validate")
