"""The CSV log numbers its runs so that two begun at once never share a folder."""

from __future__ import annotations

from pathlib import Path

from bplightning.training.appending_csv_logger import AppendingCSVLogger


def test_runs_begun_at_once_take_folders_of_their_own(tmp_path: Path) -> None:
    first, second = (AppendingCSVLogger(tmp_path, name="qa-hybrid") for _ in range(2))
    folders = [Path(logger.log_dir) for logger in (first, second, first)]
    assert [folder.name for folder in folders] == ["version_0", "version_1", "version_0"]
    assert all(folder.is_dir() for folder in folders)


def test_a_number_that_is_taken_in_between_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "qa" / "version_0").mkdir(parents=True)
    (tmp_path / "qa" / "version_1").touch()  # no folder, which Lightning does not count
    assert AppendingCSVLogger(tmp_path, name="qa").version == 2
