"""What the end of a run has found out so far, in a file: a run that was stopped there does not find it out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from bplightning.errors import UserError
from bplightning.io.files import write_whole


class Notes:
    """Name to a finding, any JSON, kept in a file from one process to the next.

    Args:
        trainer: The trainer; all its ranks know what its first one reads.
        file: Where they are kept; `None` to keep none.
        resume: Whether to go on from what is there.

    Raises:
        UserError: What is there is damaged.
    """

    def __init__(self, trainer: Trainer, file: Path | None, *, resume: bool) -> None:
        self.file = file if trainer.is_global_zero else None
        kept = _read(file) if file is not None and resume and file.is_file() else {}
        self.kept: dict[str, Any] = trainer.strategy.broadcast(kept)

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """The finding of this name: as it was kept, or else found now, on all ranks together, and kept.

        Args:
            name: Its name.
            find: Finds it.
        """
        if name not in self.kept:
            self.keep(name, find())
        return self.kept[name]

    def keep(self, name: str, finding: Any) -> None:
        """Keep a finding, in place of an earlier one of this name.

        Args:
            name: Its name.
            finding: Any JSON.
        """
        self.kept[name] = finding
        if self.file is not None:
            write_whole(self.file, json.dumps(self.kept, indent=2) + "\n")

    def drop(self) -> None:
        """Forget all: what they were for is done."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(kept, dict) or any(not isinstance(each, dict | None) for each in kept.values()):
            raise ValueError("it does not hold findings by name")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{str(file)!r} is damaged ({' '.join(str(error).split())}): remove it and repeat the command; what it "
            "held is measured again."
        ) from error
    return kept
