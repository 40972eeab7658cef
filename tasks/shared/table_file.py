"""Files of examples as tables on disk: only the columns that a task reads, each of one type for the whole file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets import config as datasets_config
from datasets.fingerprint import Hasher

from bplightning.errors import UserError
from bplightning.io.records import Placed, Table, is_table, read_lines, read_records
from bplightning.tasks.shared.wanted_columns import Wanted

BATCH = 1000
"""Examples that are turned into Arrow at a time."""

VERSION = 1
"""Of the tables that are kept on disk; raised by one whenever a file becomes another table."""

Batches = Iterator[pa.RecordBatch]


def table_of(path: Path, wanted: Wanted | None, *, cache_dir: str | None) -> Dataset:
    """The examples of a file, memory-mapped; a second call reads what the first one has left on disk.

    A type is that of the whole column, not of the file's first lines. All that CSV and TSV hold are texts, and so is
    all that JSON has in quotes, also where it looks like a date.

    Args:
        path: A file of a known ending.
        wanted: The columns that are read; by default all that have one type.
        cache_dir: Folder for the table; `None` for the one of `datasets`.

    Raises:
        UserError: A line cannot be read, or a wanted column is missing, is there twice or has no type.
    """
    status = path.stat()
    fingerprint = Hasher.hash([VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns, wanted])
    folder = Path(cache_dir or datasets_config.HF_DATASETS_CACHE) / "bplightning" / "tables"
    file = folder / f"{fingerprint}.arrow"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        schema, batches = _read(path, wanted)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as unfinished:
            try:
                with pa.ipc.new_stream(unfinished, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
            except BaseException:
                Path(unfinished.name).unlink()
                raise
        Path(unfinished.name).replace(file)
    dataset = Dataset.from_file(str(file))
    dataset._fingerprint = fingerprint  # or it would depend on when the file was written
    return dataset


def _read(path: Path, wanted: Wanted | None) -> tuple[pa.Schema, Batches]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path, wanted)
    if path.suffix.lower() == ".txt":
        return _batches(partial(_texts, path), {"text": pa.string()})
    if is_table(str(path)):
        names = Table(str(path)).names
        single = [name for name in names if name and names.count(name) == 1]
        texts = single if wanted is None else wanted.names_in(names, origin=str(path))
        return _batches(partial(read_records, str(path)), dict.fromkeys(texts, pa.string()))
    types = _Types(None if wanted is None else set(wanted.names.values()))
    records = partial(read_records, str(path), halves=True)  # in columns that nobody wants
    for batch in _chunks(records()):
        types.add(batch)
    chosen = types.kinds if wanted is None else wanted.names_in(types.names, origin=str(path))
    return _batches(records, {name: types.kinds[name] for name in chosen})


@dataclass
class _Types:
    """The types of a file's columns, from all of its records.

    Args:
        wanted: The columns whose types are needed; `None` for all, where those that have none are left out.

    Attributes:
        names: Each column to nothing, in the order in which they are met.
        kinds: The types.
    """

    wanted: set[str] | None
    names: dict[str, None] = field(default_factory=dict)
    kinds: dict[str, pa.DataType] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)

    def add(self, batch: Sequence[Placed]) -> None:
        """Take in records.

        Raises:
            UserError: A wanted column has values of unlike types.
        """
        for _, record in batch:
            self.names.update(dict.fromkeys(record))
        for name in self.names:
            if name in self.without or not (self.wanted is None or name in self.wanted):
                continue
            before = self.kinds.get(name, pa.null())
            values = [record.get(name) for _, record in batch]
            try:
                self.kinds[name] = _widened(before, values)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                if self.wanted is not None:
                    raise self._clash(name, before, batch) from error
                self.without.add(name)
                self.kinds.pop(name, None)

    @staticmethod
    def _clash(name: str, kind: pa.DataType, batch: Sequence[Placed]) -> UserError:
        """Where a column changes its type."""
        for place, record in batch:
            try:
                kind = _widened(kind, [record.get(name)])
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                return UserError(f"{place} has {half!r}, half of a character, in {name!r}: correct the text.")
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                before = "" if pa.types.is_null(kind) else f", where earlier ones are of type {kind}"
                return UserError(
                    f"{place} has the {name!r} {repr(record[name])[:60]}{before}: give the column one type."
                )
        return UserError(f"the column {name!r} has values of unlike types: give it one type.")


def _widened(kind: pa.DataType, values: list[Any]) -> pa.DataType:
    """The type that a column's values so far and these have in common."""
    found = pa.array(values).type
    if found == kind:
        return kind
    schemas = [pa.schema([("column", each)]) for each in (kind, found)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _batches(records: Any, kinds: Mapping[str, pa.DataType]) -> tuple[pa.Schema, Batches]:
    schema = pa.schema(list(kinds.items()))

    def made() -> Batches:
        for chunk in _chunks(records()):
            columns = [pa.array([record.get(name) for _, record in chunk], type=kind) for name, kind in kinds.items()]
            yield pa.record_batch(columns, schema=schema)

    return schema, made()


def _texts(path: Path) -> Iterator[Placed]:
    """The lines of a text, whose ends a language model predicts too."""
    for line in read_lines(str(path)):
        text = line.rstrip("\r\n")
        yield "", {"text": text if text == line else f"{text}\n"}


def _parquet(path: Path, wanted: Wanted | None) -> tuple[pa.Schema, Batches]:
    """Parquet says its types; what pandas calls a category is of the type of its values, a view of texts is texts."""
    whole = pq.read_schema(path)
    chosen = list(whole.names if wanted is None else wanted.names_in(whole.names, origin=str(path)))
    kinds = [whole.field(name).type for name in chosen]
    kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    kinds = [pa.large_string() if pa.types.is_string_view(kind) else kind for kind in kinds]
    schema = pa.schema(list(zip(chosen, kinds, strict=True)), metadata=whole.metadata)

    def made() -> Batches:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=chosen):
            yield pa.record_batch([batch.column(each.name).cast(each.type) for each in schema], schema=schema)

    return schema, made()


def _chunks(records: Iterator[Placed]) -> Iterator[list[Placed]]:
    while chunk := list(islice(records, BATCH)):
        yield chunk
