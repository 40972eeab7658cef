"""Reading records as people write them: JSON lines, a JSON list, CSV and TSV, in any encoding that marks itself."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from bplightning.errors import UserError
from bplightning.io.bounds import bounded_lines

STANDARD = "-"
"""Stands for standard input or output in place of a file's name."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Endings of tables to what separates their columns."""

OTHER_DELIMITERS = (";", "\t", "|")
"""What else separates the columns of a ``.csv``: spreadsheets write a semicolon where the comma is a decimal sign."""

LONGEST_CELL = 2**31 - 1
"""Characters of a cell; the module `csv` takes 131,072 if nothing is said, and a document may be longer."""

_END = "\0\0end of the file"
"""A line after the last one, which a quote that is not closed takes in with all others."""

_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
_SAID = re.compile(r"\s*sep=(.)\s*", re.IGNORECASE)

Placed = tuple[str, dict[str, Any]]
"""Where a record stands, for messages, and the record."""


def read_records(path: str, *, halves: bool = False) -> Iterator[Placed]:
    """Read JSON objects, one a line, as they come; a JSON list of them, which is read whole; or the rows of a table.

    Args:
        path: The file, or ``-`` for standard input. One that ends in ``.csv`` or ``.tsv`` is a table, see `Table`.
        halves: Whether a text may have half of a surrogate pair, which JSON can say, and no tokenizer takes.

    Yields:
        Where a record stands, for messages, and the record.

    Raises:
        UserError: The file cannot be read, is not JSON, or holds something else than objects, or nothing.
    """
    if is_table(path):
        yield from Table(path)
        return
    name = _named(path)
    lines, number = read_lines(path), 0
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number == 0 and line.lstrip().startswith("["):
            for number, record in enumerate(_parse(line + "".join(lines), line_number, name, halves), 1):
                yield _checked(f"record {number} of {name}", record)
        else:
            number += 1
            yield _checked(f"line {line_number} of {name}", _parse(line.rstrip(), line_number, name, halves))
    if number == 0:
        raise UserError(f"{name} holds no records: give one JSON object a line.")


def read_lines(path: str) -> Iterator[str]:
    """The lines of a text file, each with its end, as they come.

    The text is UTF-8, or UTF-16 or UTF-32 where the file begins as those do; a byte order mark is no part of it.

    Args:
        path: The file, or ``-`` for standard input.

    Raises:
        UserError: The file cannot be read, or a line of it not be decoded.
    """
    number = 0
    with _open(path) as stream:
        encoding = json.detect_encoding(stream.peek(4)[:4])
        unicode = encoding.startswith("utf-8")
        errors = "surrogateescape" if unicode else "strict"  # a decoder that stops does not say at which line
        text = io.TextIOWrapper(stream, encoding, errors=errors, newline="")
        try:
            for number, line in enumerate(bounded_lines(text, _named(path)), 1):
                if unicode and not line.isascii() and (wrong := _NOT_UTF8.search(line)):
                    raise UserError(
                        f"line {number} of {_named(path)} is not in UTF-8 (byte 0x{ord(wrong[0]) - 0xDC00:x} at "
                        f"character {wrong.start() + 1}): save the file in UTF-8, for example with "
                        "iconv -f cp1252 -t utf-8 if it comes from Windows."
                    )
                yield line.removeprefix("\ufeff")  # of files that were put together
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number + 1} of {_named(path)} is not in {encoding.upper()}, in which the file begins "
                f"({error.reason}): save the file in UTF-8."
            ) from error
        finally:
            text.detach()  # or standard input would be closed with it


def is_table(path: str) -> bool:
    """Whether a file is a CSV or TSV, by its ending."""
    return Path(path).suffix.lower() in DELIMITERS


class Table:
    """The rows of a CSV or TSV file as records: column name to text, nothing for a cell that a short row lacks.

    A CSV may be separated by semicolons, tabs or bars too, where its first two lines show it. In a TSV quotes are
    quotes. A column without a name, such as the index that pandas writes, and one whose name another has too are left
    out of the records.

    Args:
        path: The file, which ends in ``.csv`` or ``.tsv``.

    Attributes:
        names: The names in the first row, as they stand there.

    Raises:
        UserError: The file cannot be read, or is empty.
    """

    def __init__(self, path: str) -> None:
        self._name = _named(path)
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
        usual = DELIMITERS[Path(path).suffix.lower()]
        lines, first, self._before = read_lines(path), "", -1
        while not first.strip() and (line := next(lines, None)) is not None:
            first, self._before = line, self._before + 1
        start = [first]
        self._delimiter = usual
        if usual == "," and (said := _SAID.fullmatch(first)):  # as Excel writes it
            self._delimiter, start, self._before = said[1], [next(lines, "")], self._before + 1
        elif usual == ",":
            start += islice(lines, 1)
            self._delimiter = _delimiter(*start)
        quoting: Literal[0, 3] = csv.QUOTE_NONE if usual == "\t" else csv.QUOTE_MINIMAL
        self._rows = csv.reader(chain(start, lines, [_END]), delimiter=self._delimiter, quoting=quoting)
        self.names = [name.strip() for name in next(self._rows)]
        self._require_closed(self.names, 1)
        if not any(self.names):
            raise self._empty()

    def __iter__(self) -> Iterator[Placed]:
        count = Counter(self.names)
        kept = [(place, name) for place, name in enumerate(self.names) if name and count[name] == 1]
        found, start = False, self._rows.line_num + 1
        try:
            for row in self._rows:
                if row == [_END]:
                    break
                self._require_closed(row, start)
                start = self._rows.line_num + 1
                if any(row) or len(row) == len(self.names) == 1:  # a spreadsheet may end in rows of empty cells
                    place, found = self._place(self._rows.line_num), True
                    self._require_fitting(row, place)
                    yield place, {name: row[cell] for cell, name in kept if cell < len(row)}
        except csv.Error as error:
            raise UserError(
                f"{self._place(self._rows.line_num + 1)} cannot be read ({error}): it must be a table with columns "
                f"separated by {self._delimiter!r}."
            ) from error
        if not found:
            raise self._empty()

    def _empty(self) -> UserError:
        return UserError(f"{self._name} holds no records: give a row of column names, and below it one row a record.")

    def _place(self, line: int) -> str:
        return f"line {self._before + line} of {self._name}"

    def _require_closed(self, row: list[str], start: int) -> None:
        if row and row[-1].endswith(_END):
            raise UserError(
                f"{self._place(start)} begins a row with a quote that no later line closes: close it, or double the "
                "quotes that are part of a text."
            )

    def _require_fitting(self, row: list[str], place: str) -> None:
        if any(row[len(self.names) :]):
            raise UserError(
                f"{place} has {len(row)} cells, and the first line names {len(self.names)} "
                f"column{'s' * (len(self.names) != 1)}: name each column, "
                f"and put a text with {self._delimiter!r} in it into quotes."
            )


def _delimiter(first: str, second: str = "") -> str:
    """What separates the columns of a CSV, by its first two lines.

    It is the comma, unless the first line has none, or both lines have more cells with another one: a name may have a
    comma in it too.
    """

    def cells(delimiter: str) -> tuple[int, bool, int]:
        names, row = (len(next(csv.reader([line], delimiter=delimiter), [])) for line in (first, second))
        return min(names, row), delimiter == "," and names > 1, names

    return max((",", *OTHER_DELIMITERS), key=cells)


def _named(path: str) -> str:
    return "standard input" if path == STANDARD else repr(path)


def _open(path: str) -> AbstractContextManager[Any]:
    if path == STANDARD:
        stdin: Any = sys.stdin.buffer
        return nullcontext(stdin if hasattr(stdin, "peek") else io.BufferedReader(stdin))
    try:
        stream: BinaryIO = open(path, "rb")  # noqa: SIM115  the caller closes it
    except OSError as error:
        raise UserError(
            f"the input {path!r} cannot be read ({error.strerror}): give a file of JSON lines, a .csv or .tsv, or "
            "- for standard input."
        ) from error
    return stream


def _parse(text: str, line_number: int, name: str, halves: bool) -> Any:
    try:
        record = json.loads(text)
        if not halves and "\\u" in text:
            json.dumps(record, ensure_ascii=False).encode()  # refuses half of a surrogate pair
        return record
    except json.JSONDecodeError as error:
        place, reason = line_number + error.lineno - 1, f"{error.msg} at column {error.colno}"
    except UnicodeEncodeError as error:
        place, reason = line_number, f"{error.object[error.start]!r} is half of a character"
    except (RecursionError, ValueError) as error:  # a number of endless digits, too
        place, reason = line_number, str(error)
    raise UserError(
        f"line {place} of {name} is not valid JSON ({reason}): each line must hold one JSON object, or the whole one "
        "JSON list of objects."
    )


def _checked(place: str, record: Any) -> Placed:
    if not isinstance(record, dict):
        raise UserError(f"{place} is {json.dumps(record)[:40]}: it must be a JSON object, as in {{...}}.")
    return place, record
