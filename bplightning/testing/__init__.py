"""Contract suites for authors of strategies and tasks: subclass one in a test file, name your class, and run pytest.

    from bplightning.testing import StrategyContract
    from my_file import MyStrategy


    class TestMyStrategy(StrategyContract):
        strategy = MyStrategy

bplightning's own strategies and tasks are held to the same classes. This package needs pytest; bplightning does not.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    f"{__name__}.strategy_contract", f"{__name__}.task_contract"
)  # so that a failure shows values

from bplightning.testing.strategy_contract import StrategyCase, StrategyContract, strategy_cases  # noqa: E402
from bplightning.testing.task_contract import TaskCase, TaskContract, small_case  # noqa: E402

__all__ = ["StrategyCase", "StrategyContract", "TaskCase", "TaskContract", "small_case", "strategy_cases"]
