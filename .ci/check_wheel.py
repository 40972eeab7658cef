"""Check what a wheel puts into site-packages: all that git tracks of the package, and nothing else.

A sub-package that `pyproject.toml` forgets would be missing from the wheel alone: an editable installation has it.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

HOMES = {
    "bplightning/": "bplightning/",
    "examples/custom_": "bplightning/examples/custom_",
    "strategies/": "bplightning/strategies/",
    "tasks/": "bplightning/tasks/",
}
"""How paths in the repository begin to how they begin where they are installed."""


def expected(tracked: list[str]) -> set[str]:
    """Where the files that git tracks belong in the wheel.

    >>> sorted(expected(["bplightning/io/files.py", "tasks/qa.py", "tests/conftest.py"]))
    ['bplightning/io/files.py', 'bplightning/tasks/qa.py']
    """
    pairs = [(name, here, there) for name in tracked for here, there in HOMES.items() if name.startswith(here)]
    return {there + name.removeprefix(here) for name, here, there in pairs}


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
