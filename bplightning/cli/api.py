"""The command `fit` from Python: the same options, the same run, the same folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bplightning.reporting.schema import Report

PROGRAM = ("python", "-m", "bplightning")
"""The command that `fit` stands for, without its arguments."""

OF_PROCESSES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE")
"""Variables by which Lightning knows which processes it has started: they hold as long as the processes do."""


def fit(options: Mapping[str, Any]) -> Report | None:
    """Train and prune, then compact, evaluate and report: what ``bplightning fit`` does with these options.

    Nothing of the calling program changes: neither its arguments, its environment, its search path for modules, its
    warnings nor its random numbers. With several devices Lightning starts the calling script once for each.

    Args:
        options: Name to value, as on the command line but for the dashes; for example ``{"strategy": "hybrid",
            "strategy.target.density": 0.25, "trainer.max_epochs": 3}``.

    Returns:
        The report; its run's folder holds ``report.json`` and the compact model. `None` on every rank but the first.

    Raises:
        UserError: An option or its value makes no sense, or what it asks for cannot be done.
    """
    with _environment_restored():
        from lightning.pytorch.utilities.seed import isolate_rng  # these take seconds

        from bplightning.cli.training import PruningCLI
        from bplightning.io.quiet import quiet_lightning

        with isolate_rng(), quiet_lightning():
            arguments = ["fit", *(f"--{name}={_typed(value)}" for name, value in options.items())]
            return PruningCLI(arguments, PROGRAM).run()


def _typed(value: Any) -> str:
    """A value as one would type it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Lightning puts a run's seed into the environment, and a class path the current folder among those of modules.

    After the run both are as they were.
    """
    before, path = dict(os.environ), list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in os.environ.keys() | before.keys():
            if name in OF_PROCESSES or os.environ.get(name) == before.get(name):
                continue
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
