"""Output files and folders: refused before work begins if they cannot be written, and written whole or not at all.

What is written first has a hidden name next to its place, and is renamed at the end. No such name is opened through a
link.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bplightning.errors import UserError
from bplightning.io.locks import PATIENCE, locked

REFUSED = {
    errno.ENOSPC: "make room on the disk, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EFBIG: "this system allows no file of that size: name another place, or raise the limit (ulimit -f)",
    errno.EACCES: "name a place that you may read and write, or change its permissions",
    errno.EPERM: "name a place that you may read and write, or change its permissions",
    errno.EROFS: "name a place that can be written to",
    errno.ELOOP: "remove the link, or name another place",
    errno.ENAMETOOLONG: "give a shorter name",
}
"""What a machine refuses, and the remedy."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What of it is the disk's doing, whatever library wrote."""

DISK_FULL = ("No space left on device", "os error 28", "File too large", "os error 27", "PytorchStreamWriter failed")
"""What libraries say of a disk that is full, in errors of their own."""

NO_LINK = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
"""How a temporary file is opened: not through a link, and not for programs that this one starts."""

_unfinished: set[Path] = set()
"""What is being written whole now."""

_unfinished_later: set[Path] = set()
"""What is of no use before more is written."""


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
        UserError: There is a file where a folder must be, or no folder can be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(each for each in path.parents if each.exists() or each.is_symlink())
        raise UserError(
            f"the output {str(path)!r} cannot be written, as {str(file)!r} is a file: name another folder."
        ) from None
    except (OSError, ValueError) as error:  # of a pseudo file system, or a path that can be none
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the output {str(path)!r} cannot be written ({reason}): name another folder.") from error
    return path.parent


def require_empty(folder: Path) -> None:
    """Refuse to write into a folder that holds files.

    Raises:
        UserError: It exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"cannot write to {str(folder)!r}, which exists and is not an empty folder: name another one.")


# -- copies ------------------------------------------------------------------------------------------------------------


def copy_file(file: Path, to: Path) -> None:
    """Copy a file of a folder that somebody else may have written.

    Args:
        file: The file.
        to: The copy.

    Raises:
        UserError: It is a link to a file outside of its folder; those of the Hugging Face cache are its own.
    """
    _require_own(file, file.parent)
    shutil.copy(file, to)


def copy_folder(folder: Path, to: Path) -> None:
    """Copy a folder that somebody else may have written.

    Args:
        folder: The folder.
        to: The copy, which may be there.

    Raises:
        UserError: A file in it is a link that leaves the folder, as `copy_file` has it.
    """
    for file in folder.rglob("*"):
        _require_own(file, folder)
    shutil.copytree(folder, to, dirs_exist_ok=True)


def _require_own(file: Path, folder: Path) -> None:
    """Refuse a file that is a link to something outside of its folder.

    In the Hugging Face cache a model's files are links from ``snapshots/VERSION/`` to ``blobs/`` next to it.
    """
    home, found = folder.resolve(), file.resolve()
    of_cache = home.parent.name == "snapshots" and found.parent == home.parents[1] / "blobs"
    if not found.is_relative_to(home) and not of_cache:
        raise UserError(
            f"{str(file)!r} is a link that leaves its folder, and is not followed: put the file itself there."
        )


# -- whole or not at all -----------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str) -> None:
    """Write a text file; a reader finds the whole of it or the file that was there before.

    Raises:
        UserError: The disk is full, or cannot be written.
    """
    part = path.with_name(f".{_short(path)}.{secrets.token_hex(8)}.part")
    with _named(path), _removed_unless_moved(part):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Give a file to write into, which becomes `path` at the end, or is removed after an error.

    Args:
        path: The file; its folder exists.
        overwrite: Whether it replaces a file that is there by then.

    Raises:
        UserError: Another process is writing it, it is there at the end and must not be replaced, or the disk is full.
    """
    part, is_left = part_of(path), False
    with _named(path):
        try:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))
        except FileExistsError:
            is_left = True
    with _named(path), _claimed(part, path, os.O_RDWR, stat.S_ISREG, is_left=is_left) as descriptor:
        os.ftruncate(descriptor, 0)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
            file.flush()
            with suppress(OSError):  # what is no file on a disk cannot be synchronized
                os.fsync(descriptor)
        if overwrite:
            os.replace(part, path)
        else:
            _move_unless_there(part, path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write in, which becomes `folder` at the end, or is removed after an error.

    What an earlier process left that was killed in the midst of this is removed. A folder in such a temporary one, or
    this itself, is written as it is: it appears with the whole.

    Args:
        folder: The folder to write; it must not exist, or be empty.

    Raises:
        UserError: It holds files, a file stands in the way, another process is writing it, or the disk is full.
    """
    require_empty(folder)
    if folder in _unfinished or not _unfinished.isdisjoint(folder.parents):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    made_parent(folder)
    part, is_left = part_of(folder), False
    with _named(folder):
        try:
            part.mkdir()
        except FileExistsError:
            is_left = True
        with _claimed(part, folder, os.O_RDONLY | os.O_DIRECTORY, stat.S_ISDIR, is_left=is_left):
            for left in part.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield part
            require_empty(folder)
            if folder.exists():
                folder.rmdir()
            os.rename(part, folder)


@contextmanager
def removed_after_error(*paths: Path) -> Iterator[None]:
    """Remove files and folders after an error, also where the process is ended at once.

    Args:
        *paths: Which; none is there yet.
    """
    _unfinished_later.update(paths)
    try:
        yield
    except BaseException:
        for path in paths:
            _remove(path)
        raise
    finally:
        _unfinished_later.difference_update(paths)


def part_of(path: Path) -> Path:
    """What a file or folder is called while it is written by `whole_file` or `whole_folder`."""
    return path.with_name(f".{_short(path)}.part")


def remove_unfinished() -> None:
    """Remove what this process has begun to write and not finished, before it ends at once."""
    for part in [*_unfinished, *_unfinished_later]:
        _remove(part)


def disk_error(error: BaseException) -> int | None:
    """The number of the system's error, where `error` comes from a disk that is full or refuses; libraries wrap it.

    Args:
        error: What was raised.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK:
            return seen.errno
        if any(words in str(seen) for words in DISK_FULL):
            return errno.EFBIG if "too large" in str(seen) or "error 27" in str(seen) else errno.ENOSPC
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def _claimed(part: Path, path: Path, flags: int, is_kind: Callable[[int], bool], *, is_left: bool) -> Iterator[int]:
    """Open a temporary file or folder that no other process works on, and remove it unless it was moved.

    Args:
        part: Which.
        path: What it becomes.
        flags: Of `os.open`.
        is_kind: Whether a mode is that of a file, or of a folder.
        is_left: Whether it was there before, of a process that works on it or was killed.
    """
    foreign = UserError(f"{str(part)!r} is in the way of {str(path)!r} and was not written for it: remove it.")
    try:
        descriptor = os.open(part, flags | NO_LINK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
            raise foreign from None
        raise
    try:
        found = os.fstat(descriptor)
        alone = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
        if not is_kind(found.st_mode) or found.st_uid != os.geteuid() or not alone:
            raise foreign
        is_locked = locked(descriptor, patience=PATIENCE)
        if is_locked is False or not _is_at(part, found):
            raise UserError(f"another process is writing {str(path)!r}: wait for its end, or name another place.")
        if is_locked is None and is_left:
            raise UserError(
                f"{str(part)!r} is there, of a process that writes {str(path)!r} or was killed, and this file system "
                "has no locks by which to know: remove it if no process does, or name another place."
            )
        with _removed_unless_moved(part):
            yield descriptor
    finally:
        os.close(descriptor)


def _is_at(path: Path, found: os.stat_result) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)


@contextmanager
def _removed_unless_moved(part: Path) -> Iterator[None]:
    _unfinished.add(part)
    try:
        yield
    except BaseException:
        _remove(part)
        raise
    finally:
        _unfinished.discard(part)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an error of the disk the name of the file or folder that a user knows.

    Raises:
        UserError: The disk is full, or cannot be written.
    """
    try:
        yield
    except Exception as error:
        if (number := disk_error(error)) is not None:
            raise not_written(path, number) from error
        if isinstance(error, OSError) and Path(str(error.filename)).name == part_of(path).name:
            error.filename = str(path)
        raise


def not_written(path: Path | str, number: int) -> UserError:
    """The error of a file or folder that the system does not let us write.

    Args:
        path: Which.
        number: The system's error, a key of `REFUSED`.
    """
    return UserError(f"{path}: {os.strerror(number)}: {REFUSED[number]}.")


def _move_unless_there(part: Path, path: Path) -> None:
    """Move a file to a place where none may be; another process may have put one there since that was asked."""
    refusal = UserError(f"the output {str(path)!r} is there by now: name another file, or give --overwrite true.")
    try:
        os.link(part, path)
    except FileExistsError:
        raise refusal from None
    except OSError:  # a file system without links
        if path.exists():
            raise refusal from None
        os.replace(part, path)
    else:
        part.unlink()


def _short(path: Path) -> str:
    """The name, cut where a longer one next to it would be too long for a file system."""
    return path.name.encode()[:200].decode(errors="ignore")
