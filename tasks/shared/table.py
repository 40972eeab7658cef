"""Reading a table of examples: from a file, from the hub, or from records in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Value, get_dataset_split_names, load_dataset
from lightning.pytorch.utilities import rank_zero_info

from bplightning.errors import UserError
from bplightning.io.bounds import require_bounded
from bplightning.tasks.shared.table_file import table_of
from bplightning.tasks.shared.wanted_columns import Wanted

ENDINGS = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
"""What the name of a file may end in."""


def read_file(
    path: str | Path,
    *,
    wanted: Wanted | None = None,
    cache_dir: str | None = None,
    endings: Iterable[str] = ENDINGS,
) -> Dataset:
    """Read a file.

    Args:
        path: JSON lines (``.jsonl``, ``.json``), a list of records (``.json``), ``.csv`` or ``.tsv`` with a first line
            of column names, ``.parquet``, or ``.txt``, whose lines are a column ``text``. All that CSV and TSV hold are
            texts: "NA", "1.0" and the empty one too.
        wanted: The columns to read; by default all that have one type.
        cache_dir: Folder for the Arrow copy; `None` for the one of `datasets`.
        endings: Which of `ENDINGS` to take.

    Returns:
        Its rows.

    Raises:
        UserError: If the file is missing, of another format, damaged, or without rows; or a column that is wanted is
            missing.
    """
    path = Path(path)
    ending = path.suffix.lower()
    require_file(path)
    require_bounded(path)
    if ending not in endings:
        raise UserError(f"Data file {str(path)!r} ends in {path.suffix!r}: give one of {', '.join(sorted(endings))}.")
    try:
        dataset = table_of(path, wanted, cache_dir=cache_dir)
    except UserError:
        raise
    except (pa.ArrowException, OSError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"Data file {str(path)!r} cannot be read as {ending[1:]}: {_line(error)}.") from error
    return require_rows(dataset, origin=str(path))


def require_file(path: Path) -> None:
    """Refuse a path where there is no file.

    Raises:
        UserError: There is none, or a folder.
    """
    if path.is_dir():
        raise UserError(
            f"Data file {str(path)!r} is a folder: give the path of a file in it, or the folder of a data set with "
            "--task.dataset."
        )
    if not path.is_file():
        raise UserError(f"Data file {str(path)!r} does not exist (looked in {Path.cwd()}): give the path of a file.")


def read_hub(name: str, *, config: str | None, split: str, cache_dir: str | None = None) -> Dataset:
    """Read one split of a data set of the Hugging Face hub, or of a local folder in its layout.

    Args:
        name: Name on the hub, for example ``rajpurkar/squad``.
        config: Configuration (subset) of the data set; `None` where it has one only.
        split: For example ``"train"``.
        cache_dir: Folder for the download; `None` for the one of `datasets`.

    Returns:
        Its rows.

    Raises:
        UserError: The data set cannot be loaded, has no such split, or is empty.
    """
    try:
        dataset = load_dataset(name, config, split=split, cache_dir=cache_dir)
    except Exception as error:  # network, permission, spelling: datasets raises a dozen unrelated types
        raise UserError(
            f"Data set {name!r} (configuration {config!r}, split {split!r}) cannot be loaded: {_line(error)}. "
            "Check the name, the configuration (dataset_config) and the network, or give files with train_file and "
            "validation_file."
        ) from error
    return require_rows(dataset, origin=name)


def hub_splits(name: str, *, config: str | None) -> list[str]:
    """Names of the splits of a data set of the hub, or of a local folder in its layout.

    Raises:
        UserError: The data set cannot be loaded.
    """
    try:
        return list(get_dataset_split_names(name, config))
    except Exception as error:
        raise UserError(
            f"Data set {name!r} (configuration {config!r}) cannot be loaded: {_line(error)}. Check the name, the "
            "configuration (dataset_config) and the network, or give files with train_file and validation_file."
        ) from error


def hub_split(name: str, *, config: str | None, split: str) -> str:
    """The name of a split: "validation" may be "test", where there is no other.

    Args:
        name: Name on the hub, or a local folder.
        config: Configuration (subset) of the data set.
        split: ``"train"`` or ``"validation"``.
    """
    if split != "validation":
        return split
    found = hub_splits(name, config=config)
    if "validation" in found or "test" not in found:
        return split
    rank_zero_info(f"{name} has no validation set ({', '.join(found)}): its test set is taken.")
    return "test"


def from_records(records: Iterable[dict[str, Any]], *, origin: str) -> Dataset:
    """The table of examples given as dictionaries.

    Raises:
        UserError: If there is none, or a column has values of unlike types.
    """
    try:
        dataset = Dataset.from_list(list(records))
    except (TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"{origin!r} has examples of unlike types: {error}. Give a column one type.") from error
    return require_rows(dataset, origin=origin)


def own_columns(table: Dataset, names: Mapping[str, bool], given: Mapping[str, str], *, origin: str) -> Dataset:
    """The columns that a task wants, under the task's own names; others are dropped.

    Args:
        table: The data.
        names: The task's own names, to whether the column may be missing.
        given: Own name to what it is called in the data, where that differs.
        origin: What to call the data in messages.

    Raises:
        UserError: A column is missing, is there twice, or stands for two.
    """
    found = Wanted(names, given).names_in(table.column_names, origin=origin)
    return table.select_columns(list(found)).rename_columns({a: b for a, b in found.items() if a != b})


def require_texts(table: Dataset, names: Iterable[str], *, origin: str) -> Dataset:
    """The table, in which those of the columns that are there must hold texts; an empty one is a text.

    Args:
        table: The data, columns under the task's own names.
        names: The columns.
        origin: What to call the data in messages.

    Raises:
        UserError: A column holds something else, or a text is missing.
    """
    for name in names:
        if name not in table.column_names:
            continue
        column, feature = table.data.column(name), table.features[name]
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise UserError(
                f"example {row + 1} of {origin!r} has no {name!r}: write one, which may be empty, or remove "
                "the example."
            )
        if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
            raise UserError(
                f"column {name!r} of {origin!r} must hold texts; its values are of type {column.type}: choose another "
                f"column with --task.columns.{name}, or write them as texts."
            )
    return table


def require_rows(dataset: Dataset, *, origin: str) -> Dataset:
    """The table, which must have rows.

    Raises:
        UserError: It has none.
    """
    if len(dataset) == 0:
        raise UserError(f"{origin!r} holds no examples: give a data set with at least one.")
    return dataset


def _line(error: Exception) -> str:
    """An error's message, on one line."""
    return " ".join(str(error).split()).rstrip(".")
