"""The command `fit` from Python: the same options, the same run, the same folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bplightning
from bplightning.reporting.schema import Report

PROGRAM = ("python", "-m", "bplightning")
"""The command that `fit` stands for, without its arguments."""


def fit(options: Mapping[str, Any]) -> Report | None:
    """Train and prune, then compact, evaluate and report: what ``bplightning fit`` does with these options.

    Args:
        options: Name to value, as on the command line but for the dashes; for example ``{"strategy": "hybrid",
            "strategy.regularization": 20, "trainer.max_epochs": 3}``.

    Returns:
        The report; its run's folder holds ``report.json`` and the compact model. `None` on every rank but the first.

    Raises:
        UserError: An option or its value makes no sense, or what it asks for cannot be done.
    """
    from bplightning.cli.training import TrainingCommand  # it takes seconds

    arguments = ["fit", *(f"--{name}={_typed(value)}" for name, value in options.items())]
    with _as_if_typed(arguments):
        return TrainingCommand(arguments, PROGRAM).run()


def _typed(value: Any) -> str:
    """A value as one would type it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


@contextmanager
def _as_if_typed(arguments: list[str]) -> Iterator[None]:
    """What a report and a run that is stopped say of the command, and what Lightning starts further ranks by."""
    before = sys.argv
    sys.argv = [str(Path(bplightning.__file__).with_name("__main__.py")), *arguments]
    try:
        yield
    finally:
        sys.argv = before
