"""Data files that are made to fill memory or a disk are one line of error, at once."""

from __future__ import annotations

import gzip
import io
from itertools import pairwise
from pathlib import Path

import pyarrow as arrow
import pytest
import yaml
from pyarrow import parquet

from bplightning.errors import UserError
from bplightning.io import bounds
from bplightning.io.bounds import read_yaml, require_bounded
from bplightning.io.records import read_records


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LINE", 1 << 16)


@pytest.mark.parametrize("path", ["/dev/zero", "x.csv", "x.jsonl"])
def test_records_whose_line_never_ends(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not path.startswith("/"):
        Path(path).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"^line 1 of '{path}' is longer than 64 MiB, the most that is read: split it"):
        next(read_records(path))


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "x.txt", "x.json"])
def test_a_field_that_is_too_long(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = '{"text": "a"}\n' * 10_000
    path.write_text(rows)
    require_bounded(path)
    path.write_text(f'{rows}{{"text": "{"a" * 70_000}"}}\n{rows}')
    with pytest.raises(UserError, match="is longer than 0 MiB, the most that is read"):
        require_bounded(path)


@pytest.mark.usefixtures("_short")
def test_a_json_list_in_one_line_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" + ", ".join(['{"text": "a"}'] * 10_000) + "]")
    require_bounded(path)
    assert len(list(read_records(str(path)))) == 10_000


def test_a_list_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WHOLE", 1 << 20)
    with pytest.raises(UserError, match="in one JSON list: give one JSON object a line"):
        list(bounds.bounded_lines(io.StringIO("[" + "0" * (1 << 21)), "standard input"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.txt"])
def test_packed_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"0" * 1000))
    with pytest.raises(UserError, match=rf"data file '.*{name}' is packed \(gzip\): unpack it first"):
        require_bounded(tmp_path / name)


def test_a_parquet_file_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    text = arrow.DictionaryArray.from_arrays(arrow.array([0] * 5000, arrow.int32()), arrow.array(["a" * (1 << 20)]))
    for name, column in {"text": text, "nested": arrow.StructArray.from_arrays([text], names=["inner"])}.items():
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(arrow.table({"label": [1] * 5000, name: column}), path, compression="gzip")
        assert path.stat().st_size < 100_000
        with pytest.raises(UserError, match=rf"unpacks to far more than it is \(column '{name}'\): it is damaged or"):
            require_bounded(path)


def test_ordinary_parquet_files(tmp_path: Path) -> None:
    table = {"text": ["a", None, "bc"] * 1000, "words": [["a", "b"], [], ["c"]] * 1000, "label": [1.5, 2, 3] * 1000}
    parquet.write_table(arrow.table(table), tmp_path / "x.parquet")
    require_bounded(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    require_bounded(tmp_path / "x.parquet")  # its reader says what is wrong


BOMBS = {
    "aliases of aliases": "".join(f"{b}: &{b} [{'*' + a}{(', *' + a) * 9}]\n" for a, b in pairwise("abcdefgh")),
    "itself": "task: &a [*a]\n",
    "itself, by name": "task: &a {x: *a}\n",
    "deep": "task: " + "[" * 900 + "]" * 900,
    "deeper": "task: " + "{a: " * 3000,
    "endless digits": "seed: " + "9" * 6000,
    "long": "a: " + "x" * (1 << 22),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_configurations_that_are_made_to_fill_memory(kind: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml("a: &a [x]\n" + BOMBS[kind])


def test_a_configuration_may_use_aliases() -> None:
    assert read_yaml("a: &a [x]\nb: [*a, *a]\n") == {"a": ["x"], "b": [["x"], ["x"]]}
