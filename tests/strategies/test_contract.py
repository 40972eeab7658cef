"""Every registered strategy keeps its promises: the suite that `bplightning.testing` has for anybody's.

One class a strategy, so that processes that run the tests share them out. `tests/matrix/strategies.py` has all cases.
"""

from __future__ import annotations

from contract_classes import classes

from bplightning.testing import StrategyCase

EVERY_DAY = {"", "element-element", "head-unit", "2:4-1:4", "global-16x16-unit", "True"}
"""Cases by their options: each kind of granularity, both scopes, frozen masks. All others are tried with `movement`."""


def everyday(name: str, case: StrategyCase) -> bool:
    """A part of the cases; hybrid is soft movement with another default."""
    options = str(case).partition("-")[2]
    return name == "movement" or options in ({""} if name == "hybrid" else EVERY_DAY)


globals().update(classes(everyday))
