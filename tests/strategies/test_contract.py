"""Every registered strategy keeps its promises: the suite that `bplightning.testing` has for anybody's.

One or two classes a strategy, so that the processes that run the tests share them out. All cases are in
`tests/matrix/strategies.py`.
"""

from __future__ import annotations

import pytest
from contract_classes import classes

from bplightning.testing import StrategyCase

OTHERWISE = {"element-element", "head-unit", "2:4-1:4", "global-16x16-unit", "frozen"}
"""Cases by their options: each kind of granularity, both scopes, frozen masks. All others are tried with `movement`."""


def as_it_is(name: str, case: StrategyCase) -> bool:
    """With its defaults."""
    return not case.options


def otherwise(name: str, case: StrategyCase) -> bool:
    """A part of the other cases, and none of hybrid, which is soft movement with another default."""
    return bool(case.options) and (name == "movement" or (name != "hybrid" and options_of(case) in OTHERWISE))


def options_of(case: StrategyCase) -> str:
    """What makes its name, behind the strategy's."""
    return str(case).removeprefix(f"{case.cls.__name__}-")


globals().update(classes(as_it_is))
globals().update(classes(otherwise, suffix="Otherwise", marks=[pytest.mark.slow]))
