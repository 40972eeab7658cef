"""Writing JSON lines, to a file that appears whole or not at all."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from bplightning.errors import UserError
from bplightning.io.files import whole_file
from bplightning.io.records import STANDARD


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
        self._open = ExitStack()
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
                return self._open.enter_context(self._place.open("wb"))
            if not overwrite:
                raise UserError(
                    f"the output {str(self._place)!r} is there already: name another file, or give --overwrite true."
                )
        self._place.parent.mkdir(parents=True, exist_ok=True)
        return self._open.enter_context(whole_file(self._place, overwrite=overwrite))

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
        try:
            self._open.__exit__(kind, error, trace)
        except OSError as failure:
            if kind is None:
                raise self._named(failure) from failure

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
