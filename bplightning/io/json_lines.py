"""Records in and JSON lines out: records with the place they came from, and a file that appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from bplightning.errors import UserError

STANDARD = "-"
"""Stands for standard input or output in place of a file's name."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Endings of tables to what separates their columns."""


def read_records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON objects, one a line, as they come; a JSON list of them, which is read whole; or the rows of a table.

    Args:
        path: The file, or ``-`` for standard input. One that ends in ``.csv`` or ``.tsv`` is a table whose first row
            names its columns; its values are texts.

    Yields:
        Where a record stands, for messages, and the record.

    Raises:
        UserError: The file cannot be read, is not JSON, or holds something else than objects, or nothing.
    """
    name = "standard input" if path == STANDARD else repr(path)
    number = 0
    with _open(path) as stream:
        if (delimiter := DELIMITERS.get(Path(path).suffix.lower())) is not None:
            yield from _rows(stream, delimiter, name)
            return
        for line_number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            if number == 0 and line.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
                for number, record in enumerate(_parse(line + stream.read(), line_number, name), 1):
                    yield _checked(f"record {number} of {name}", record)
            else:
                number += 1
                yield _checked(f"line {line_number} of {name}", _parse(line.rstrip(), line_number, name))
    if number == 0:
        raise UserError(f"{name} holds no records: give one JSON object a line.")


def _rows(stream: BinaryIO, delimiter: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.reader((line.removeprefix(BYTE_ORDER_MARK).decode() for line in stream), delimiter=delimiter)
    columns: list[str] | None = None
    found = False
    try:
        for row in rows:
            if columns is None:
                columns = row
            elif row:
                found = True
                yield f"line {rows.line_num} of {name}", dict(zip(columns, row, strict=False))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"line {rows.line_num + 1} of {name} cannot be read ({error}): it must be a table in UTF-8, with columns "
            f"separated by {delimiter!r}."
        ) from error
    if not found:
        raise UserError(f"{name} holds no records: give a row of column names, and below it one row a record.")


def _open(path: str) -> AbstractContextManager[BinaryIO]:
    if path == STANDARD:
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"the input {path!r} cannot be read ({error.strerror}): give a file of JSON lines, a .csv or .tsv, or "
            "- for standard input."
        ) from error


def _parse(text: bytes, line_number: int, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, reason = line_number + error.lineno - 1, f"{error.msg} at column {error.colno}"
    except (UnicodeDecodeError, RecursionError) as error:
        place, reason = line_number, str(error)
    raise UserError(
        f"line {place} of {name} is not valid JSON ({reason}): each line must hold one JSON object, or the whole one "
        "JSON list of objects, in UTF-8."
    )


def _checked(place: str, record: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(record, dict):
        raise UserError(f"{place} is {json.dumps(record)[:40]}: it must be a JSON object, as in {{...}}.")
    return place, record


class JsonLinesWriter:
    """Writes JSON lines; a file is written beside its place and put there at the end, if all went well.

    Args:
        path: The file, or ``-`` for standard output. A device or a named pipe is written to directly.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        UserError: The file is there already, or cannot be written.
    """

    def __init__(self, path: str, *, overwrite: bool = False) -> None:
        self._name = "standard output" if path == STANDARD else path
        self._place = Path(path)
        self._unfinished: Path | None = None
        if path == STANDARD:
            self._stream: BinaryIO = sys.stdout.buffer
            return
        try:
            self._stream = self._opened(overwrite)
        except OSError as error:
            raise UserError(f"the output {path!r} cannot be written ({error.strerror}): name another file.") from error

    def _opened(self, overwrite: bool) -> BinaryIO:
        if self._place.is_dir():
            raise UserError(f"the output {str(self._place)!r} is a folder: name a file in it.")
        if self._place.exists():
            if not stat.S_ISREG(self._place.stat().st_mode):
                return self._place.open("wb")
            if not overwrite:
                raise UserError(
                    f"the output {str(self._place)!r} is there already: name another file, or give --overwrite true."
                )
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished = self._place.with_name(f".{self._place.name}-{os.getpid()}")
        return self._unfinished.open("wb")

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records, one a line, and hand them on at once.

        Raises:
            UserError: A record holds a number that JSON has not.
            OSError: The disk is full or the reader is gone; the error has the output's name.
        """
        lines = b"".join(_line(record) for record in records)
        try:
            self._stream.write(lines)
            self._stream.flush()
        except OSError as error:
            raise self._named(error) from error

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place == Path(STANDARD):
            return
        try:
            self._stream.close()
            if self._unfinished is not None and kind is None:
                self._unfinished.replace(self._place)
        except OSError as failure:
            if kind is None:
                raise self._named(failure) from failure
        finally:
            if self._unfinished is not None:
                self._unfinished.unlink(missing_ok=True)

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, self._name)


def _line(record: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"the model answers {str(record)[:80]!r} with a number that JSON has not (NaN or infinity): its weights "
            "are damaged, or its precision is too small for it."
        ) from error
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        return json.dumps(record).encode() + b"\n"
