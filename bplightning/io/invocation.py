"""How this program was called."""

from __future__ import annotations

import sys
from pathlib import Path


def program() -> list[str]:
    """The words before the arguments, as one would type them."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return ["python", "-m", path.parent.name]
    return ["python", path.name] if path.suffix == ".py" else [path.name]
