"""How this process was called; the one place that reads `sys.argv`, besides the program's entrance."""

from __future__ import annotations

import sys
from pathlib import Path

from bplightning.io.private import shown_command


def program() -> list[str]:
    """The words before the arguments, as one would type them."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return ["python", "-m", path.parent.name]
    return ["python", path.name] if path.suffix == ".py" else [path.name]


def command_line() -> str:
    """The whole command, as one would type it, but for secrets, which are masked: it is written into reports."""
    return shown_command([*program(), *sys.argv[1:]])
