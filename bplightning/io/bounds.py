"""Limits on data from files, which may come from anywhere: a small file can unpack to more than a disk holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml

from bplightning.errors import UserError

LINE = 1 << 26
"""Most bytes of a line, or of a value in a JSON file."""

WHOLE = 1 << 31
"""Most bytes of what is read at once, such as a JSON list of records."""

COLUMN = 1 << 30
"""Bytes of a decoded column that are always allowed."""

UNPACKED = 200
"""How many times the size of its file a column may have beyond that."""

SETTINGS_TEXT = 1 << 22
"""Most characters of a configuration."""

SETTINGS = 100_000
"""Most values of a configuration, those that an alias repeats counted again."""

NESTED = 64
"""How deep a configuration may be nested."""

PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
}
"""How packed files begin; libraries unpack them wherever they find one."""


class UnboundedYamlError(yaml.YAMLError):
    """YAML of a size that no configuration has."""


def read_yaml(text: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """What YAML holds, where it is no larger than a configuration can be: a few aliases make a billion values.

    Args:
        text: The YAML.
        load: What reads it.

    Raises:
        YAMLError: It is no YAML, or larger than a configuration, or nested deeper, or has a number that is too long.
    """
    if len(text) > SETTINGS_TEXT:
        raise UnboundedYamlError(f"it is longer than {SETTINGS_TEXT >> 20} MiB")
    try:
        content = load(text)
    except RecursionError as error:
        raise UnboundedYamlError(f"it is nested deeper than {NESTED} levels") from error
    except ValueError as error:  # of Python's own limit on digits
        raise UnboundedYamlError(str(error)) from error
    _values(content, depth=0)
    return content


def _values(content: Any, *, depth: int) -> int:
    """How many values there are, those that an alias repeats counted again."""
    if depth > NESTED:
        raise UnboundedYamlError(f"it is nested deeper than {NESTED} levels")
    count = 1
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        count += _values(each, depth=depth + 1)
        if count > SETTINGS:
            raise UnboundedYamlError(f"it has more than {SETTINGS:,} values")
    return count


def bounded_lines(stream: TextIO, name: str) -> Iterator[str]:
    """The lines of a stream; a JSON list that begins in the first one may come in parts of a line.

    Args:
        stream: The stream.
        name: What to call it in messages.

    Raises:
        UserError: A line is too long, or a list.
    """
    number, length, listed = 0, 0, False
    while line := stream.readline(LINE + 1):
        number, length = number + 1, length + len(line)
        listed = listed or (number == 1 and line.lstrip("\ufeff \t\r").startswith("["))
        if not listed and len(line) > LINE:
            raise _too_long(f"line {number} of {name}")
        if listed and length > WHOLE:
            raise UserError(f"{name} has more than {WHOLE >> 30} GiB in one JSON list: give one JSON object a line.")
        yield line


def require_bounded(path: Path) -> None:
    """Refuse a data file with a line or a value that is too long, or that unpacks to far more than it is.

    Args:
        path: A file that is there. One that cannot be read is left to who reads it.

    Raises:
        UserError: It is such a file, or a packed one.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(8)
            for sign, kind in PACKED.items():
                if begin.startswith(sign):
                    raise UserError(f"data file {str(path)!r} is packed ({kind}): unpack it first.")
            if begin.startswith(b"PAR1"):
                _require_bounded_columns(path)
            elif path.stat().st_size > LINE:
                file.seek(0)
                _require_short(file, b'"' if path.suffix.lower() == ".json" else b"\n", repr(str(path)))
    except OSError:
        return


def _require_short(file: BinaryIO, end: bytes, name: str) -> None:
    """Refuse a file with too long a stretch between two of the same byte."""
    since = 0
    while chunk := file.read(min(1 << 22, LINE // 2)):
        last = chunk.rfind(end)
        first = chunk.find(end)
        if since + (len(chunk) if first < 0 else first) > LINE:
            raise _too_long(f"a line or a value of {name}")
        since = since + len(chunk) if last < 0 else len(chunk) - last - 1


def _too_long(what: str) -> UserError:
    return UserError(f"{what} is longer than {LINE >> 20} MiB, the most that is read: split it, or correct the file.")


def _require_bounded_columns(path: Path) -> None:
    """Refuse a Parquet file with a column that is far larger than the file when it is decoded."""
    import pyarrow as arrow  # deferred: other verbs need it not
    from pyarrow import parquet

    allowed = max(COLUMN, UNPACKED * path.stat().st_size)
    sizes: dict[str, int] = {}
    try:
        names = [field.path for field in parquet.ParquetFile(path).schema]
        file = parquet.ParquetFile(path, read_dictionary=names)
        if file.metadata.num_rows * 8 > allowed:
            raise _unpacks(path, "its rows")
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            for column in (group.column(index) for index in range(group.num_columns)):
                if column.total_uncompressed_size > allowed:
                    raise _unpacks(path, f"column {column.path_in_schema!r}")
        for batch in file.iter_batches(batch_size=1 << 14):  # texts as they are stored, each once
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                sizes[name] = sizes.get(name, 0) + _decoded(column)
                if sizes[name] > allowed:
                    raise _unpacks(path, f"column {name!r}")
    except arrow.ArrowException:
        return  # who reads it says what is wrong


def _decoded(column: Any) -> int:
    """Bytes of a column of a batch without its dictionary."""
    import pyarrow.compute as compute
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        if not (types.is_string(kind.value_type) or types.is_binary(kind.value_type)):
            return int(column.indices.nbytes)
        lengths = compute.binary_length(column.dictionary)
        return int(compute.sum(lengths.take(column.indices)).as_py() or 0)
    if types.is_list(kind) or types.is_large_list(kind):
        return _decoded(column.flatten())
    if types.is_struct(kind):
        return sum(map(_decoded, column.flatten()))
    return int(column.nbytes)


def _unpacks(path: Path, what: str) -> UserError:
    return UserError(
        f"data file {str(path)!r} unpacks to far more than it is ({what}): it is damaged or made to harm; write it "
        "again from its source."
    )
