"""Tables of examples: every format of a file, and the columns that a task wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny_texts import hub_folder

from bplightning.errors import UserError
from bplightning.tasks.shared.table import (
    from_records,
    hub_split,
    hub_splits,
    own_columns,
    read_file,
    read_hub,
    require_texts,
)
from bplightning.tasks.shared.wanted_columns import Wanted

WANTED = {"text": False, "text_pair": True, "label": False}
MAP = pa.map_(pa.string(), pa.int64())

RECORDS = [
    {"text": "NA", "label": "1"},
    {"text": "", "label": "0"},
    {"text": 'he said "ä, ö"', "label": "0"},
    {"text": "1984", "label": "1"},
]


def separated(separator: str, *, quote: bool) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        rows = [["text", "label"], *([row["text"], row["label"]] for row in RECORDS)]
        cells = [['"' + cell.replace('"', '""') + '"' if quote else cell for cell in row] for row in rows]
        path.write_text("".join(separator.join(row) + "\n" for row in cells), encoding="utf-8")

    return write


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.json": lambda path: path.write_text(json.dumps(RECORDS)),
    "a.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, RECORDS))),
    "a.csv": separated(",", quote=True),
    "b.CSV": separated(",", quote=True),
    "a.tsv": separated("\t", quote=False),  # quotes in a TSV file are quotes
    "a.parquet": lambda path: Dataset.from_list(RECORDS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_texts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert read_file(tmp_path / name, cache_dir=str(tmp_path / "cache")).to_list() == RECORDS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv"])
def test_a_byte_order_mark_is_no_part_of_a_name(name: str, encoding: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_text(encoding="utf-8").encode(encoding))
    assert read_file(tmp_path / name, cache_dir=str(tmp_path / "cache")).to_list() == RECORDS


def test_lines_of_a_text_keep_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ä\r\n\nlast".encode("utf-8-sig"))
    rows = read_file(tmp_path / "a.txt", cache_dir=str(tmp_path / "cache")).to_list()
    assert rows == [{"text": "ä\n"}, {"text": "\n"}, {"text": "last"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\n", "holds no records: give a row of column names"),
        ("a.csv", "", r"a\.csv' holds no records: give a row of column names"),
        ("a.csv", "text,label,text\na,b,c\n", "a\\.csv' has two columns 'text': rename the one that is not meant"),
        ("a.csv", b"text,label\na,b\n\xff,b\n", "line 3 of .* is not in UTF-8 .*: save the file in UTF-8"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{broken', "line 2 of .* is not valid JSON"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xlsx", "", r"ends in '\.xlsx': give one of \.csv, \.json"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in range(2):  # a file that was refused leaves nothing behind
        with pytest.raises(UserError, match=message):
            read_file(tmp_path / name, wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/**/*.*"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv' does not exist \(looked in"):
        read_file(tmp_path / "no.csv")
    with pytest.raises(UserError, match=r"is a folder: give the path of a file in it, or .* with --task\.dataset"):
        read_file(tmp_path)


LATE: dict[str, Callable[[bool], dict[str, Any]]] = {
    "null, then a date": lambda late: {"more": "2024-01-01T10:00:00Z" if late else None},
    "begins late": lambda late: {"more": "n"} if late else {},
    "1, then 1.5": lambda late: {"more": 1.5 if late else 1},
    "1, then a text": lambda late: {"more": "a" if late else 1},
    "a list, then an object": lambda late: {"more": {"a": 1} if late else []},
    "half a character": lambda late: {"more": "\ud83d" if late else "a"},
    "an object with more": lambda late: {"more": {"a": 1, **({"b": 2} if late else {})}},
}


@pytest.mark.parametrize("change", LATE)
def test_a_column_that_no_task_reads_refuses_no_file(change: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "b", **LATE[change](number > 2000)} for number in range(2002)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = read_file(tmp_path / "a.jsonl", wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["text", "label"]
    assert len(table) == len(read_file(tmp_path / "a.jsonl", cache_dir=str(tmp_path / "cache"))) == 2002


def test_a_column_has_the_type_of_all_its_values(tmp_path: Path) -> None:
    labels: list[Any] = [[]] * 1500 + [["a", "b"]]
    rows = [{"text": "2021-01-01T10:00:00Z", "label": label} for label in labels]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = read_file(tmp_path / "a.jsonl", wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))
    assert table["label"][:] == labels
    assert table.features["label"].feature.dtype == table.features["text"].dtype == "string"


def test_a_wanted_column_of_unlike_types_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}] * 3 + [{"text": "a", "label": "two"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"line 4 of .* has the 'label' 'two', where earlier ones are of type int64"):
        read_file(tmp_path / "a.jsonl", wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))


def test_half_a_character_in_a_wanted_column_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a \\ud83d", "label": "b"}\n')
    with pytest.raises(UserError, match=r"line 2 of .* has '.ud83d', half of a character, in 'text': correct"):
        read_file(tmp_path / "a.jsonl", wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))


def test_parquet_keeps_declared_names_and_odd_columns_do_no_harm(tmp_path: Path) -> None:
    declared = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=declared).to_parquet(tmp_path / "a.parquet")
    table = read_file(tmp_path / "a.parquet", wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))
    assert table.features == declared
    view = pa.array(["a"], pa.string_view())  # as Arrow's newer writers have texts
    odd = pa.table({"text": view, "label": pa.array(["x"]).dictionary_encode(), "odd": pa.array([[("k", 1)]], MAP)})
    pq.write_table(odd, tmp_path / "b.parquet")  # a category, as pandas writes it
    table = read_file(tmp_path / "b.parquet", wanted=Wanted(WANTED), cache_dir=str(tmp_path / "cache"))
    assert table.to_list() == [{"text": "a", "label": "x"}]


def test_a_table_is_read_once_and_again_when_its_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.csv", str(tmp_path / "cache")
    file.write_text("text,label\na,b\n")
    first, again = (read_file(file, cache_dir=cache) for _ in range(2))
    assert first._fingerprint == again._fingerprint
    assert len(list(tmp_path.glob("cache/**/*.arrow"))) == 1
    file.write_text("text,label\na,b\nc,d\n")
    changed = read_file(file, cache_dir=cache)
    assert len(changed) == 2
    assert changed._fingerprint != first._fingerprint


def test_a_folder_with_configurations(tmp_path: Path) -> None:
    tables = {"one": {"train": Dataset.from_list(RECORDS)}, "two": {"test": Dataset.from_list(RECORDS[:2])}}
    folder, cache = hub_folder(tmp_path / "set", tables), str(tmp_path / "cache")
    assert read_hub(folder, config="two", split="test", cache_dir=cache).to_list() == RECORDS[:2]
    assert hub_splits(folder, config="one") == ["train"]
    for config in (None, "three"):
        with pytest.raises(UserError, match=rf"configuration {config!r}.* cannot be loaded: .*train_file"):
            read_hub(folder, config=config, split="train", cache_dir=cache)
        with pytest.raises(UserError, match=rf"configuration {config!r}.* cannot be loaded"):
            hub_splits(folder, config=config)


def test_a_test_set_stands_for_a_validation_set_that_is_not_there(tmp_path: Path) -> None:
    splits = {"one": ("train", "test"), "two": ("validation", "test"), "three": ("train",)}
    tables = {config: dict.fromkeys(names, Dataset.from_list(RECORDS)) for config, names in splits.items()}
    folder = hub_folder(tmp_path / "set", tables)
    found = {config: hub_split(folder, config=config, split="validation") for config in splits}
    assert found == {"one": "test", "two": "validation", "three": "validation"}
    assert hub_split(folder, config="one", split="train") == "train"


def test_columns_get_the_names_of_the_task() -> None:
    table = from_records([{"a": "x", "text": "y", "label": 1, "more": 0}], origin="t")
    assert own_columns(table, WANTED, {}, origin="t").to_list() == [{"text": "y", "label": 1}]
    swapped = own_columns(table, WANTED, {"text": "a", "text_pair": "text"}, origin="t")
    assert swapped.to_list() == [{"text": "x", "text_pair": "y", "label": 1}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"text": "body"},
            r"'t' lacks the columns \['body'\]; it has \['a b', 'text', 'label'\].*--task\.columns\.text='a b'\.",
        ),
        ({"label": "stars"}, r"lacks the columns \['stars'\].*--task\.columns\.label='a b'\."),
        ({"text_pair": "second"}, r"lacks the columns \['second'\]"),  # it may be missing, but not where it was named
        ({"text": "label"}, "columns gives one column of 't' twice"),
    ],
)
def test_columns_that_are_not_there(given: dict[str, str], message: str) -> None:
    table = from_records([{"a b": "x", "text": "y", "label": 1}], origin="t")
    with pytest.raises(UserError, match=message):
        own_columns(table, WANTED, given, origin="t")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None], "example 2 of 't' has no 'text'"),
        ([1, 2], r"column 'text' of 't' must hold texts; its values are of type int64: .*--task\.columns\.text"),
        ([["a"], ["b"]], "must hold texts"),
        ([None, None], "example 1 of 't' has no 'text'"),
    ],
)
def test_texts_must_be_texts(values: list[Any], message: str) -> None:
    table = from_records([{"text": value} for value in values], origin="t")
    with pytest.raises(UserError, match=message):
        require_texts(table, ["text"], origin="t")


def test_an_empty_text_is_a_text() -> None:
    table = from_records([{"text": ""}, {"text": "a"}], origin="t")
    assert require_texts(table, ["text", "text_pair"], origin="t") is table


def test_examples_of_unlike_types() -> None:
    with pytest.raises(UserError, match="'t' has examples of unlike types"):
        from_records([{"text": "a"}, {"text": 1}], origin="t")
