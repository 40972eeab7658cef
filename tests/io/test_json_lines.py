"""Writing JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bplightning.errors import UserError
from bplightning.io.json_lines import JsonLinesWriter


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    with JsonLinesWriter(str(path)) as output:
        output.write([{"a": "ü"}, {"a": "\ud800"}])
        output.write([{"a": None}])
        assert not path.exists()
    assert path.read_bytes() == '{"a": "ü"}\n{"a": "\\ud800"}\n{"a": null}\n'.encode()
    assert [item.name for item in path.parent.iterdir()] == ["x.jsonl"]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(error), JsonLinesWriter(str(path), overwrite=True) as output:  # noqa: PT012
        output.write([{"a": 1}])
        raise error
    assert [item.name for item in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "before"


def test_a_file_is_replaced_only_where_that_was_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(UserError, match=r"the output '.*x' is there already: name another file, or give --overwrite"):
        JsonLinesWriter(str(path))
    assert path.read_text() == "before"
    with JsonLinesWriter(str(path), overwrite=True) as output:
        output.write([{"a": 1}])
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (lambda folder: folder, "is a folder: name a file in it"),
        (lambda folder: folder / "file" / "x", r"cannot be written \(File exists\): name another file"),
    ],
)
def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, place: Callable[[Path], Path], said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=said):
        JsonLinesWriter(str(place(tmp_path)), overwrite=True)


def test_a_full_disk_is_said_with_the_files_name() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"), JsonLinesWriter("/dev/full") as output:
        output.write([{"a": 1}])


def test_what_json_has_not_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"a number that JSON has not \(NaN or infinity\)"),
        JsonLinesWriter(str(tmp_path / "x")) as output,
    ):
        output.write([{"score": float("nan")}])
    assert not list(tmp_path.iterdir())
