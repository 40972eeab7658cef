"""The contract, and what the stars of a review promise beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from bplightning_star_rating.star_rating import StarRating

from bplightning import UserError
from bplightning.plugins import TASKS, load
from bplightning.testing import TaskContract


class TestStarRating(TaskContract):
    task = StarRating
    records = ({"text": "The ferry was dull."}, {"text": "Good."}, {"text": "The tea was good, the queue was bad."})


def test_the_entry_point_leads_to_it() -> None:
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    class_path = project["entry-points"][TASKS]["star-rating"].replace(":", ".")
    assert load(TASKS, class_path) is StarRating


@pytest.mark.parametrize("stars", ["6", "0.5", "null", '"many"'])
def test_stars_that_cannot_be_are_named(tmp_path: Path, stars: str) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text(f'{{"text": "Good.", "stars": {stars}}}\n')
    task = StarRating(model=StarRating().model, validation_file=str(file), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"example 1 of .*reviews\.jsonl' has .* stars; it must be a number"):
        task.setup("validate")
