"""Reading question-answering data, from files or from the hub, to one flat table.

Every reader returns a `datasets.Dataset` with the columns of `COLUMNS`. What the answers say is checked later, once,
when the examples are tokenized (`check_answers`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from bplightning.errors import UserError
from bplightning.io.bounds import require_bounded
from bplightning.tasks.shared import table
from bplightning.tasks.shared.table import require_file
from bplightning.tasks.shared.wanted_columns import Wanted

COLUMNS = Features(
    {
        "id": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)

WANTED = Wanted(dict.fromkeys(COLUMNS, False), renamable=False)


def read_file(path: str | Path, *, cache_dir: str | None = None) -> Dataset:
    """Read one split from a file.

    Args:
        path: SQuAD's nested JSON (``.json``), flat JSON or JSON lines (``.json``, ``.jsonl``), or ``.parquet``.
        cache_dir: Folder for the Arrow copy of flat files; `None` for the one of `datasets`.

    Returns:
        The examples, columns as `COLUMNS`.

    Raises:
        UserError: If the file is missing, of another format, without examples, or lacks a column.
    """
    path = Path(path)
    require_file(path)
    nested = _nested_articles(path) if path.suffix.lower() == ".json" else None
    if nested is not None:
        return from_records(flatten(nested), origin=str(path))
    endings = (".json", ".jsonl", ".parquet")
    return normalise(table.read_file(path, wanted=WANTED, cache_dir=cache_dir, endings=endings), origin=str(path))


def from_records(records: Iterable[dict[str, Any]], *, origin: str) -> Dataset:
    """The table of examples given as dictionaries; keys beyond `COLUMNS` are dropped.

    >>> record = {"id": 1, "context": "a b", "question": "?", "answers": {"text": ["b"], "answer_start": [2]}, "x": 0}
    >>> from_records([record], origin="here")[0]["answers"]
    {'text': ['b'], 'answer_start': [2]}
    """
    return normalise(table.from_records(records, origin=origin), origin=origin)


def flatten(articles: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """SQuAD's articles as flat records, in the order of the file.

    >>> qa = {"id": "1", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}
    >>> flatten([{"paragraphs": [{"context": "a b", "qas": [qa]}]}])[0]["answers"]
    {'text': ['b'], 'answer_start': [2]}
    """
    return [
        {
            "id": qa["id"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")},
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def normalise(dataset: Dataset, *, origin: str) -> Dataset:
    """Bring a table to the columns and types of `COLUMNS`.

    Args:
        dataset: The table; further columns are dropped.
        origin: Where it comes from, named in errors.

    Returns:
        The table with the columns of `COLUMNS`.

    Raises:
        UserError: If it lacks a column or a value, has a column of another type, or names an id twice.
    """
    WANTED.names_in(dataset.column_names, origin=origin)
    dataset = dataset.select_columns(list(COLUMNS))
    if dataset.features != COLUMNS:
        try:
            dataset = dataset.cast(COLUMNS)
        except (TypeError, ValueError) as error:
            raise UserError(f"{origin!r} has columns of other types than {dict(COLUMNS)}: {error}.") from error
    empty = {name: count for name in COLUMNS if (count := dataset.data.column(name).null_count)}
    if empty:
        raise UserError(
            f"{origin!r} has examples without a value (column: how many): {empty}. Fill them, or remove the examples."
        )
    ids = dataset["id"][:]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        repeated = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(
            f"{origin!r} has two examples with the id {repeated!r}: ids must differ, predictions go by them."
        )
    return dataset


def check_answers(*, name: str, context: str, answers: dict[str, list[Any]], may_lack: bool = False) -> None:
    """Check that every answer of one example is in its context at the given place.

    Args:
        name: The example's id, for the error.
        context: The passage.
        answers: ``text`` and ``answer_start`` (characters from the start of the context), equally long.
        may_lack: Whether there may be no answer.

    Raises:
        UserError: If there is no answer and there must be one, an answer is blank, or its text is not at its offset.
    """
    texts, starts = answers["text"], answers["answer_start"]
    if not texts and not starts and not may_lack:
        raise UserError(
            f"Example {name!r} has no answer: set version_2_with_negative to take in unanswerable questions (as in "
            "SQuAD v2), or remove them."
        )
    if len(texts) != len(starts):
        raise UserError(
            f"Example {name!r} has {len(texts)} answer texts and {len(starts)} offsets: give one offset a text."
        )
    for text, start in zip(texts, starts, strict=True):
        if not text.strip():
            raise UserError(f"Example {name!r} has a blank answer: give its text, or remove the example.")
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            raise UserError(
                f"Example {name!r}: the answer {text!r} is not in its context at answer_start {start} (characters), "
                f"where the context has {found!r}: correct the offset, or remove the example."
            )


def _nested_articles(path: Path) -> list[dict[str, Any]] | None:
    """The articles of a file in SQuAD's nested format; `None` where it is a flat file."""
    require_bounded(path)
    try:
        content = json.loads(path.read_bytes())  # of bytes it sees the encoding
    except (ValueError, RecursionError):
        return None  # JSON lines, or damaged: the flat reader finds out
    if not isinstance(content, dict) or "data" not in content:
        return None
    articles = content["data"]
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                _ = paragraph["context"], [(qa["id"], qa["question"], qa["answers"]) for qa in paragraph["qas"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} has a list 'data' that is not SQuAD's: {error!r}. The rule is data[].paragraphs[] with "
            "'context' and 'qas', each of them with 'id', 'question' and 'answers'."
        ) from error
    return articles
