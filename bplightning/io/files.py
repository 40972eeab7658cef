"""Output files and folders: refused before work begins if they cannot be written, and written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bplightning.errors import UserError


def writable(path: Path, overwrite: bool) -> Path:
    """A file that may be written; its folder is made.

    Raises:
        UserError: It is there already and is not to be replaced, is a folder, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"the output {str(path)!r} is a folder: name a file in it.")
    if path.exists() and not overwrite:
        raise UserError(f"the output {str(path)!r} is there already: name another file, or give --overwrite true.")
    if not os.access(made_parent(path), os.W_OK):
        raise UserError(f"the output {str(path)!r} cannot be written: name another folder, or change its permissions.")
    return path


def made_parent(path: Path) -> Path:
    """The folder that a file or folder is to be written in, made where it is not there.

    Raises:
        UserError: There is a file where a folder must be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(each for each in path.parents if each.exists() or each.is_symlink())
        raise UserError(
            f"the output {str(path)!r} cannot be written, as {str(file)!r} is a file: name another folder."
        ) from None
    return path.parent


def write_whole(path: Path, text: str) -> None:
    """Write a text file; a reader finds the whole of it or the file that was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_empty(folder: Path) -> None:
    """Refuse to write into a folder that holds files.

    Raises:
        UserError: It exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"cannot write to {str(folder)!r}, which exists and is not an empty folder: name another one.")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write in, which becomes `folder` at the end, or is removed after an error.

    Args:
        folder: The folder to write; it must not exist, or be empty.

    Raises:
        UserError: It holds files, or a file stands in the way.
    """
    require_empty(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=made_parent(folder)))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # only its owner can read a temporary folder
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
