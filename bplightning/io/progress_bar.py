"""Showing the progress of a measurement, never while anything is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

OnProgress = Callable[[float, str], object]
"""Called with the fraction done and the current work."""

OFTEN = 0.5
"""Fewest seconds between two drawings of a bar."""


def no_progress(fraction: float, what: str) -> None:
    """Show nothing."""


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """A bar on a terminal, otherwise one line for each kind of work; drawn only when called."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = ""

        def say(fraction: float, what: str) -> None:
            nonlocal said
            if what != said:
                print(f"{100 * fraction:3.0f} %  {what}", file=sys.stderr, flush=True)
            said = what

        yield say
        return
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        drawn: tuple[str, float] = "", -OFTEN

        def draw(fraction: float, what: str) -> None:
            nonlocal drawn
            bar.update(task, completed=fraction, description=what)
            if what != drawn[0] or bar.get_time() - drawn[1] >= OFTEN:
                bar.refresh()
                drawn = what, bar.get_time()

        yield draw
