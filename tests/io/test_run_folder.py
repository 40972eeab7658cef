"""The folder of a run, and its configuration as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bplightning.errors import UserError
from bplightning.io.run_folder import require_none_begins, section_as, settings_of, worked_on


class Pace:
    def __init__(self, epochs: int = 1) -> None:
        if epochs < 0:
            raise UserError(f"epochs is {epochs}; it must be 0 or more.")
        self.epochs = epochs


def test_a_section_is_read_as_what_takes_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("pace: {epochs: 3}\nempty:\n")
    assert settings_of(tmp_path) == {"pace": {"epochs": 3}, "empty": None}
    assert section_as(tmp_path, "pace", Pace).epochs == 3
    assert section_as(tmp_path, "empty", Pace).epochs == section_as(tmp_path, "missing", Pace).epochs == 1


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{old: 1}", r"config\.yaml' cannot be read \(.*'old'"),
        ("[1]", r"config\.yaml' cannot be read \(.*must be a mapping"),
        ("{epochs: many}", r"config\.yaml' cannot be read \('<' not supported"),
        ("{epochs: -1}", "epochs is -1; it must be 0 or more"),
    ],
)
def test_a_damaged_section_is_the_users_to_mend(tmp_path: Path, section: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(f"pace: {section}")
    with pytest.raises(UserError, match=said):
        section_as(tmp_path, "pace", Pace)


def test_a_run_that_begins_next_to_this_one_counts_where_its_number_is_lower(tmp_path: Path) -> None:
    lower = tmp_path / "version_3"
    lower.mkdir()
    with worked_on(lower):
        require_none_begins(tmp_path / "version_2")
        with pytest.raises(UserError, match="another process is working on the run"):
            require_none_begins(tmp_path / "version_11")
    require_none_begins(tmp_path / "version_11")


@pytest.mark.parametrize("name", ["mine", "version_", "version_of_mine"])
def test_a_run_with_a_name_of_its_own_has_no_number(tmp_path: Path, name: str) -> None:
    (tmp_path / "version_0").mkdir()
    with worked_on(tmp_path / "version_0"):
        require_none_begins(tmp_path / name)
