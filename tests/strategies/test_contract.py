"""Every registered strategy keeps its promises: the suite that `bplightning.testing` has for anybody's."""

from __future__ import annotations

from bplightning.plugins import STRATEGIES, available, load
from bplightning.testing import StrategyCase, StrategyContract, strategy_cases

APART = {"ziplm"}
"""Those that need a file to be made with: they have the suite in a file of their own."""


class TestEveryStrategy(StrategyContract):
    @classmethod
    def cases(cls) -> list[StrategyCase]:
        names = available(STRATEGIES).keys() - APART
        return [case for name in sorted(names) for case in strategy_cases(load(STRATEGIES, name))]
