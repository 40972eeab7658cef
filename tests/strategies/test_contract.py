"""Every registered strategy keeps its promises: the suite that `bplightning.testing` has for anybody's."""

from __future__ import annotations

from bplightning.plugins import STRATEGIES, available, load
from bplightning.testing import StrategyCase, StrategyContract, strategy_cases


class TestEveryStrategy(StrategyContract):
    @classmethod
    def cases(cls) -> list[StrategyCase]:
        return [case for name in available(STRATEGIES) for case in strategy_cases(load(STRATEGIES, name))]
