"""Check what a wheel puts into site-packages: all that git tracks of the package, and nothing else.

A sub-package that `pyproject.toml` forgets would be missing from the wheel alone: an editable installation has it.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

HOMES = {"bplightning": "bplightning", "strategies": "bplightning/strategies", "tasks": "bplightning/tasks"}
"""Folder of the repository to where it is installed."""


def expected(tracked: list[str]) -> set[str]:
    """Where the files that git tracks belong in the wheel.

    >>> sorted(expected(["bplightning/io/files.py", "tasks/qa.py", "tests/conftest.py"]))
    ['bplightning/io/files.py', 'bplightning/tasks/qa.py']
    """
    parts = [name.partition("/") for name in tracked]
    return {f"{HOMES[top]}/{rest}" for top, _, rest in parts if top in HOMES}


def main(wheel: str, tracked: str) -> None:
    """Exit with a message when the wheel and the list of tracked files, one a line, differ."""
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = expected(Path(tracked).read_text().splitlines())
    if found != wanted:
        sys.exit(f"{wheel}: missing: {sorted(wanted - found)}; not in git: {sorted(found - wanted)}")
    print(f"{wheel}: {len(found)} files, the same as in git")


if __name__ == "__main__":
    main(*sys.argv[1:])
