"""Records as people write them: JSON lines, lists, tables, in any encoding that marks itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from bplightning.errors import UserError
from bplightning.io.records import read_records


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
    ("content", "said"),
    [
        (b"text\n", "holds no records: give a row of column names"),
        (b"", "holds no records: give a row of column names"),
        (
            b"text\na\n\xe9\n",
            r"line 3 of '.*x.csv' is not in UTF-8 \(byte 0xe9 at character 1\): save .*iconv -f cp1252",
        ),
        (b"\xff\xfea", r"line 1 of '.*x.csv' is not in UTF-16, in which the file begins \(truncated"),
        (b'text,label\na,b\n"c,d\ne,f\n', "line 3 of '.*x.csv' begins a row with a quote that no later line closes"),
        (b'text,"label\na,b\n', "line 1 of '.*x.csv' begins a row with a quote"),
        (
            b"text,label\na,b\na,b,c\n",
            r"line 3 of '.*x.csv' has 3 cells, and the first line names 2 columns: .*into quotes",
        ),
    ],
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
        (
            b'{"a": 1}\n{"a": "\xff"}\n',
            r"line 2 of '.*x' is not in UTF-8 \(byte 0xff at character 8\): save the file in UTF-8",
        ),
        (b'{"a": 1}\n"b"\n', "line 2 of '.*x' is \"b\": it must be a JSON object"),
        (b'\n[{"a": 1},\n1]', "record 2 of '.*x' is 1: it must be a JSON object"),
        (b'\n[{"a": 1},\n{]', "line 3 of '.*x' is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1 of '.*x' is not valid JSON .*4300 digits"),
        (rb'{"a": "\ud800 b"}', r"line 1 of '.*x' is not valid JSON \('.ud800' is half of a character\)"),
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pandas.csv", ",text,label\n0,good,1\n1,bad,0\n"),
        ("pandas.tsv", "\ttext\tlabel\n0\tgood\t1\n1\tbad\t0\n"),
        ("trailing.csv", "text,label,\ngood,1,\nbad,0,\n"),
        ("trailing_rows.csv", "text,label\ngood,1,,\n\nbad,0\n,\n"),
        ("alike.csv", "note,text,note,label\nx,good,y,1\nx,bad,y,0\n"),
        ("short.csv", "text,label,note\ngood,1\nbad,0\n"),
        ("blanks.csv", "\n text , label\ngood,1\nbad,0\n"),
        ("semicolons.csv", '"text";label\ngood;1\nbad;0\n'),
        ("comma_in_a_name.csv", 'text;label;"note, long"\ngood;1;x\nbad;0;"y, z"\n'),
        ("bars_in_a_name.csv", "text,label,a|b|c|d\ngood,1,x\nbad,0,y\n"),
        ("tabs.csv", "text\tlabel\ngood\t1\nbad\t0\n"),
        ("excel.csv", "sep=;\ntext;label\ngood;1\nbad;0\n"),
        ("macintosh.csv", "text,label\rgood,1\rbad,0\r"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_tables_as_people_write_them(name: str, content: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert [{own: record[own] for own in ("text", "label")} for _, record in read(tmp_path / name)] == [
        {"text": "good", "label": "1"},
        {"text": "bad", "label": "0"},
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("content", ['{"a": "ü"}\n{"a": "b"}\n', '[{"a": "ü"},\n{"a": "b"}]'])
def test_json_in_other_encodings(encoding: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content.encode(encoding))
    assert [record for _, record in read(tmp_path / "x.json")] == [{"a": "ü"}, {"a": "b"}]


def test_a_byte_order_mark_between_files_put_together_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"text\na\n" + "b\n".encode("utf-8-sig"))
    assert [record["text"] for _, record in read(tmp_path / "x.csv")] == ["a", "b"]


def test_a_cell_may_be_a_whole_document(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"text\n{'long ' * 40_000}\n")
    assert len(read(tmp_path / "x.csv")[0][1]["text"]) == 200_000


def test_lines_count_as_an_editor_counts_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('\nsep=;\ntext;label\n"a\nb";1\nc;2;3\n')
    with pytest.raises(UserError, match="line 6 of"):
        read(tmp_path / "x.csv")
