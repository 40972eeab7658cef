"""Files and folders appear whole or not at all, to one process at a time, and never through somebody's link."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bplightning.errors import UserError
from bplightning.io import files
from bplightning.io.files import copy_file, copy_folder, part_of, whole_file, whole_folder, write_whole
from bplightning.io.locks import locked

Writer = Callable[..., AbstractContextManager[Any]]
WRITERS: list[Writer] = [whole_file, whole_folder]


def fill(part: Any) -> None:
    if isinstance(part, Path):
        (part / "x").write_text("whole")
    else:
        part.write(b"whole")


def content(path: Path) -> str:
    return (path / "x" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("writer", WRITERS)
def test_it_appears_at_the_end_or_not_at_all(tmp_path: Path, writer: Writer) -> None:
    out = tmp_path / "out"
    for error in (ValueError(), KeyboardInterrupt(), SystemExit(143)):
        with pytest.raises(type(error)), writer(out) as part:  # noqa: PT012
            fill(part)
            assert not out.exists()
            raise error
        assert not list(tmp_path.iterdir())
    with writer(out) as part:
        fill(part)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content(out) == "whole"


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_killed_process_left_is_taken_over(tmp_path: Path, writer: Writer) -> None:
    part = part_of(tmp_path / "out")
    if writer is whole_folder:
        (part / "old").mkdir(parents=True)
        (part / "link").symlink_to(tmp_path)
    else:
        part.write_text("a longer text than the new one")
    with writer(tmp_path / "out") as new:
        fill(new)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content(tmp_path / "out") == "whole"


@pytest.mark.parametrize("writer", WRITERS)
def test_two_processes_do_not_write_the_same(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0)
    with writer(tmp_path / "out") as part:
        with pytest.raises(UserError, match=r"another process is writing '.*out': wait for its end, or name another"):
            writer(tmp_path / "out").__enter__()
        fill(part)
    assert content(tmp_path / "out") == "whole"


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link(tmp_path: Path, writer: Writer) -> None:
    theirs = tmp_path / "theirs"
    if writer is whole_folder:
        theirs.mkdir()
        (theirs / "kept").touch()
    else:
        theirs.write_text("kept")
    out = tmp_path / "mine" / "out"
    out.parent.mkdir()
    part_of(out).symlink_to(theirs)
    with pytest.raises(UserError, match=r"'.*\.out\.part' is in the way of '.*out' and was not written for it: remove"):
        writer(out).__enter__()
    if writer is whole_file:  # nor into a file of two names
        part_of(out).unlink()
        os.link(theirs, part_of(out))
        with pytest.raises(UserError, match="is in the way of"):
            writer(out).__enter__()
        assert theirs.read_text() == "kept"
    else:
        assert [path.name for path in theirs.iterdir()] == ["kept"]


def test_small_files_have_temporary_names_that_nobody_can_foresee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []

    def noted(path: Path, flags: int, *mode: int) -> int:
        opened.append((path.name, flags))
        return as_before(path, flags, *mode)

    as_before = os.open
    monkeypatch.setattr(os, "open", noted)
    for _ in range(2):
        write_whole(tmp_path / "x.json", "{}")
    assert len({name for name, _ in opened}) == 2
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in opened)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/1: x"),
        ValueError("I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_said_with_the_name_of_what_was_written(tmp_path: Path, error: Exception, wrapped: bool) -> None:
    def write() -> None:
        if not wrapped:
            raise error
        try:
            raise error
        except type(error) as cause:
            raise UserError("a BertModel cannot be exported to onnx by transformers") from cause

    said = rf"^{tmp_path}/out: No space left on device: make room on the disk, or name another place\.$"
    for writer in WRITERS:
        with pytest.raises(UserError, match=said), writer(tmp_path / "out"):  # type: ignore[operator]
            write()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_by_the_end_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there by now"), whole_file(tmp_path / "out", overwrite=False):
        (tmp_path / "out").write_text("theirs")
    assert (tmp_path / "out").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_one_that_is_being_written_appears_with_it(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as part:
        for inner in (part, part / "deeper" / "model"):
            with whole_folder(inner) as same:
                assert same == inner
        (part / "deeper" / "model" / "x").touch()
    assert (tmp_path / "out" / "deeper" / "model" / "x").exists()


def test_of_two_that_begin_at_once_one_writes(tmp_path: Path) -> None:
    """Two processes, and what a third has left."""
    part_of(tmp_path / "out").mkdir()
    here = multiprocessing.get_context("fork")
    begin, results = here.Event(), here.Queue()

    def write(name: str) -> None:
        files.PATIENCE = 0.0
        begin.wait()
        try:
            with whole_folder(tmp_path / "out") as part:
                (part / name).touch()
                time.sleep(0.3)
        except UserError as error:
            results.put(str(error))
        else:
            results.put(name)

    processes = [here.Process(target=write, args=(name,)) for name in ("a", "b")]
    for process in processes:
        process.start()
    begin.set()
    said = sorted((results.get(timeout=20), results.get(timeout=20)), key=len)
    for process in processes:
        process.join()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [said[0]]
    assert "another process is writing" in said[1] or "is not an empty folder" in said[1]


@pytest.mark.parametrize("place", ["/proc/nowhere/out", "{file}/x/out", "{long}/out"])
def test_a_place_where_no_folder_can_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    where = Path(place.format(file=tmp_path / "file", long=tmp_path / ("x" * 300)))
    with pytest.raises(UserError, match=r"the output '.*/out' cannot be written.*: name another folder\.$"):
        files.made_parent(where)


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_link_that_leaves_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    theirs = tmp_path / "theirs"
    (theirs / "deep").mkdir(parents=True)
    (theirs / "a").write_text("theirs")
    (theirs / "inside").symlink_to("a")
    copy_file(theirs / "inside", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "theirs"
    for link, to in {"tokenizer.json": "../secret", "deep/x": tmp_path / "secret", "y": tmp_path}.items():
        (theirs / link).symlink_to(to)
        said = rf"'.*{link}' is a link that leaves its folder, and is not followed: put the file itself there"
        with pytest.raises(UserError, match=said):
            copy_file(theirs / link, tmp_path / "stolen")
        with pytest.raises(UserError, match="is a link that leaves its folder"):
            copy_folder(theirs, tmp_path / "stolen")
        (theirs / link).unlink()
    assert not (tmp_path / "stolen").exists()
    copy_folder(theirs, tmp_path / "whole")
    assert (tmp_path / "whole" / "a").exists()


def test_links_of_the_hugging_face_cache_are_its_own(tmp_path: Path) -> None:
    blobs, version = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "123"
    blobs.mkdir(parents=True)
    version.mkdir(parents=True)
    (blobs / "0f").write_text("{}")
    (version / "config.json").symlink_to("../../blobs/0f")
    copy_file(version / "config.json", tmp_path / "config.json")
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_lock_that_is_held_is_waited_for_only_so_long(tmp_path: Path) -> None:
    one, two = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert locked(one)
    assert locked(two, patience=0) is False
    os.close(one)
    assert locked(two, patience=0)
    os.close(two)


@pytest.mark.parametrize("writer", WRITERS)
def test_where_there_are_no_locks_nothing_is_taken_over(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "locked", lambda *_, **__: None)
    with writer(tmp_path / "out") as part:
        fill(part)
    with writer(tmp_path / "other") as part:  # noqa: SIM117
        with pytest.raises(UserError, match="was killed, and this file system has no locks by which to know: remove"):
            writer(tmp_path / "other").__enter__()
    assert content(tmp_path / "out") == "whole"
