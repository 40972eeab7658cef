"""Reading question-answering data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from bplightning.errors import UserError
from bplightning.tasks.squad.data import COLUMNS, check_answers, from_records, read_file

Examples = list[dict[str, Any]]


def nested(examples: Examples) -> dict[str, Any]:
    """SQuAD's own format, one paragraph an example."""
    paragraphs = []
    for row in examples:
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        ]
        qas = [{"id": row["id"], "question": row["question"], "answers": answers}]
        if not answers:  # as in SQuAD v2
            qas[0] |= {"is_impossible": True, "plausible_answers": [{"text": row["context"][:3], "answer_start": 0}]}
        paragraphs.append({"context": row["context"], "qas": qas})
    return {"version": "1.1", "data": [{"title": "Tea", "paragraphs": paragraphs}]}


WRITERS: dict[str, Callable[[Path, Examples], Any]] = {
    "nested.json": lambda path, rows: path.write_text(json.dumps(nested(rows)), encoding="utf-8"),
    "flat.json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "lines.json": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8"),
    "lines.jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8"),
    "hub.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_examples(name: str, tmp_path: Path, examples: Examples) -> None:
    WRITERS[name](tmp_path / name, examples)
    dataset = read_file(tmp_path / name, cache_dir=str(tmp_path / "cache"))
    assert dataset.features == COLUMNS
    assert dataset.to_list() == [{column: row[column] for column in COLUMNS} for row in examples]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("first", [0, 4])
def test_every_format_may_lack_answers(name: str, first: int, tmp_path: Path, some_unanswerable: Examples) -> None:
    rows = some_unanswerable[first:]  # the last two have none: a column of empty lists, which has no type of its own
    WRITERS[name](tmp_path / name, rows)
    dataset = read_file(tmp_path / name, cache_dir=str(tmp_path / "cache"))
    assert dataset.to_list() == [{column: row[column] for column in COLUMNS} for row in rows]


@pytest.mark.parametrize("name", WRITERS)
def test_a_changed_file_is_read_anew(name: str, tmp_path: Path, examples: Examples) -> None:
    for rows in (examples[:2], examples):
        WRITERS[name](tmp_path / name, rows)
        assert len(read_file(tmp_path / name, cache_dir=str(tmp_path / "cache"))) == len(rows)


def test_a_missing_file_and_an_unknown_ending_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json' does not exist"):
        read_file(tmp_path / "none.json")
    (tmp_path / "a.csv").write_text("id\n1\n")
    with pytest.raises(UserError, match=r"ends in '\.csv': give one of \.json, .*\.parquet"):
        read_file(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"title": "x"}]}', r"not SQuAD's: KeyError\('paragraphs'\)"),
        ('{"data": []}', "holds no examples"),
        ("{broken", "line 1 of .* is not valid JSON"),
        (
            '{"id": "1", "passage": "b"}',
            r"lacks the columns \['context', 'question', 'answers'\]; it has \['id', 'passage'\]",
        ),
        ('{"id": "1", "context": "b", "question": "c", "answers": "d"}', "columns of other types"),
    ],
)
def test_a_file_that_is_none_of_the_formats(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "a.json", cache_dir=str(tmp_path / "cache"))


def test_a_missing_value_and_a_repeated_id_are_named(examples: Examples) -> None:
    with pytest.raises(UserError, match="two examples with the id 'nile-2'"):
        from_records([*examples, examples[1]], origin="here")
    with pytest.raises(UserError, match=r"without a value \(column: how many\): \{'question': 1\}"):
        from_records([examples[0], examples[1] | {"question": None}], origin="here")
    with pytest.raises(UserError, match="'here' has examples of unlike types"):
        from_records([examples[0], examples[1] | {"context": 5}], origin="here")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"text": ["b"], "answer_start": [3]},
            "Example 'x': the answer 'b' is not in its context at answer_start 3.*'c'",
        ),
        ({"text": ["c"], "answer_start": [-2]}, "answer_start -2"),
        ({"text": ["a", "b"], "answer_start": [0, 4]}, "the answer 'b'"),
        (
            {"text": [], "answer_start": []},
            "Example 'x' has no answer: set version_2_with_negative .* or remove them",
        ),
        ({"text": [], "answer_start": [0]}, "0 answer texts and 1 offsets"),
        ({"text": [" "], "answer_start": [1]}, "blank answer"),
        ({"text": ["a", "b"], "answer_start": [0]}, "2 answer texts and 1 offsets"),
    ],
)
def test_an_answer_that_is_not_where_it_says(answers: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_answers(name="x", context="a bca", answers=answers)


def test_answers_may_lack_but_not_be_wrong() -> None:
    check_answers(name="x", context="a", answers={"text": [], "answer_start": []}, may_lack=True)
    for answers in ({"text": [], "answer_start": [0]}, {"text": ["b"], "answer_start": [0]}):
        with pytest.raises(UserError, match="Example 'x'"):
            check_answers(name="x", context="a", answers=answers, may_lack=True)


def test_another_occurrence_of_the_answer_is_valid() -> None:
    check_answers(name="x", context="a bca", answers={"text": ["a", "a"], "answer_start": [4, 0]})
