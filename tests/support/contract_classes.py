"""The contract of strategies as classes of tests, one of each registered strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bplightning.plugins import STRATEGIES, available, load
from bplightning.testing import StrategyCase, StrategyContract, strategy_cases

APART = {"ziplm"}
"""Those that need a file to be made with: they have the suite in a file of their own."""


def classes(
    wanted: Callable[[str, StrategyCase], bool], *, suffix: str = "", marks: Sequence[pytest.MarkDecorator] = ()
) -> dict[str, type[StrategyContract]]:
    """Name of each class to the class, as pytest looks for them in a module.

    Args:
        wanted: Whether to try a strategy, by its name, with a case of its options.
        suffix: Behind the names.
        marks: Of all tests.
    """
    made: dict[str, type[StrategyContract]] = {}
    for name in sorted(available(STRATEGIES).keys() - APART):
        cls = load(STRATEGIES, name)
        options = [case.options for case in strategy_cases(cls) if wanted(name, case)]
        if options:
            body: dict[str, Any] = {"strategy": cls, "options": options, "pytestmark": list(marks)}
            made[f"Test{cls.__name__}{suffix}"] = type(f"Test{cls.__name__}{suffix}", (StrategyContract,), body)
    return made
