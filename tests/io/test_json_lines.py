"""JSON lines in and out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bplightning.errors import UserError
from bplightning.io.json_lines import JsonLinesWriter, read_records

# -- reading -------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(place.replace(repr(str(path)), "FILE"), record) for place, record in read_records(str(path))]


def test_lines_are_read_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  {"a": "\xc3\xbc"}')
    assert read(path) == [("line 1 of FILE", {"a": 1}), ("line 3 of FILE", {"a": "ü"})]


def test_a_list_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf[{"a": 1},\n {"a": 2}]\n')
    assert read(path) == [("record 1 of FILE", {"a": 1}), ("record 2 of FILE", {"a": 2})]


def test_rows_of_a_table_are_records(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes('\ufefftext,label\r\n"a, ü\nb",1\r\n\r\n2021-01-01,0\r\n'.encode())
    assert read(tmp_path / "x.csv") == [
        ("line 3 of FILE", {"text": "a, ü\nb", "label": "1"}),
        ("line 5 of FILE", {"text": "2021-01-01", "label": "0"}),
    ]
    (tmp_path / "x.tsv").write_text("text\nit's, \"fine\n")
    assert read(tmp_path / "x.tsv") == [("line 2 of FILE", {"text": "it's, \"fine"})]


@pytest.mark.parametrize(
    ("content", "said"), [(b"text\n", "holds no records: give a row of column names"), (b"text\n\xff\n", "in UTF-8")]
)
def test_a_table_that_cannot_be_read_is_one_error(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(read_records(str(tmp_path / "x.csv")))


def test_lines_are_read_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            text = b'{"a": 1}\n' * (len(buffer) // 9)
            buffer[: len(text)] = text
            return len(text)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    records = read_records("-")
    assert [next(records) for _ in range(5000)][-1] == ("line 5000 of standard input", {"a": 1})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a": 1\n', r"line 2 of '.*x' is not valid JSON \(Expecting ',' delimiter at column 8\)"),
        (b'{\n "a": 1}\n', r"line 1 of '.*x' is not valid JSON .*: each line must hold one JSON object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 of '.*x' is not valid JSON .*in UTF-8"),
        (b'{"a": 1}\n"b"\n', "line 2 of '.*x' is \"b\": it must be a JSON object"),
        (b'\n[{"a": 1},\n1]', "record 2 of '.*x' is 1: it must be a JSON object"),
        (b'\n[{"a": 1},\n{]', "line 3 of '.*x' is not valid JSON"),
        (b'{"a":' * 100_000, "line 1 of '.*x' is not valid JSON .*recursion"),
        (b"\n \n", "'.*x' holds no records"),
        (b"[]", "'.*x' holds no records"),
    ],
)
def test_bad_input_is_said_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(read_records(str(tmp_path / "x")))


def test_a_missing_input_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the input '.*nowhere' cannot be read \(No such file or directory\)"):
        next(read_records(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        next(read_records(str(tmp_path)))


# -- writing -------------------------------------------------------------------------------------------------------


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
