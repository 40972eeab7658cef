"""Tables of examples: every format of a file, and the columns that a task wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
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


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert read_file(tmp_path / "a.csv", cache_dir=str(tmp_path / "cache")).to_list() == [{"text": "a", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\n", "has no row below the first line"),
        ("a.csv", "", r"a\.csv' cannot be read as csv"),
        ("a.csv", "text,text\na,b\n", "cannot be read as csv: its first line names a column twice"),
        ("a.csv", "text,label\na,b,c\n", "names 2 columns, and the row below has 3 cells"),
        ("a.csv", b"text,label\n\xff,b\n", "cannot be read as csv"),
        ("a.jsonl", "{broken", "cannot be read as json"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xlsx", "", r"ends in '\.xlsx': give one of \.csv, \.json"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / name, cache_dir=str(tmp_path / "cache"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv' does not exist \(looked in"):
        read_file(tmp_path / "no.csv")


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


WANTED = {"text": False, "text_pair": True, "label": False}


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
            r"'t' lacks the columns \['body'\]; it has \['a', 'text', 'label'\].*--task\.columns\.text=a",
        ),
        ({"text_pair": "second"}, r"lacks the columns \['second'\]"),  # it may be missing, but not where it was named
        ({"text": "label"}, "columns gives one column of 't' twice"),
    ],
)
def test_columns_that_are_not_there(given: dict[str, str], message: str) -> None:
    table = from_records([{"a": "x", "text": "y", "label": 1}], origin="t")
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
