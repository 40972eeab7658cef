"""The folder of a run, and its configuration as it was written."""

from __future__ import annotations

import os
import signal
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


def test_a_run_that_begins_next_to_this_one_may_be_the_same(tmp_path: Path) -> None:
    other = tmp_path / "version_3"
    for own in ("version_2", "version_11", "mine"):
        other.mkdir()
        with worked_on(other):
            require_none_begins(other)  # itself
            with pytest.raises(UserError, match="another process is working on the run"):
                require_none_begins(tmp_path / own)
        assert not other.exists()  # where nothing was written, nothing is left
        require_none_begins(tmp_path / own)
    other.mkdir()
    (other / "config.yaml").touch()  # one that has begun can be compared
    with worked_on(other):
        require_none_begins(tmp_path / "version_2")


def test_a_lock_of_a_process_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with worked_on(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with worked_on(tmp_path):
        pass
