"""Finds ``bplightning.strategies`` and its like in a clone, where their folders lie next to this package.

An installation has them inside; then nothing here is used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

CLONE = Path(__file__).parents[1]
FOLDERS = {f"bplightning.{name}": CLONE / name for name in ("examples", "strategies", "tasks")}


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = FOLDERS.get(fullname)
        if folder is None:
            return None
        if (file := folder / "__init__.py").is_file():
            return spec_from_file_location(fullname, file, submodule_search_locations=[str(folder)])
        spec = ModuleSpec(fullname, None, is_package=True)  # a folder of data
        spec.submodule_search_locations = [str(folder)]
        return spec


def find_neighbours() -> None:
    """Have Python find the folders of a clone, after it has looked inside the package."""
    if all(folder.is_dir() for folder in FOLDERS.values()):
        sys.meta_path.append(_Finder())
