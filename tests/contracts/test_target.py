"""How much a strategy keeps."""

from __future__ import annotations

from typing import Any

import pytest

from bplightning.contracts.target import Target
from bplightning.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"target\.density is 0; it is the fraction of weights to keep and must be in \(0, 1\]"),
        ({"density": 1.5}, r"target\.density is 1\.5; .* must be in \(0, 1\]"),
        ({"density": float("nan")}, r"target\.density is nan; .* must be in \(0, 1\]"),
        ({"flops": 2.0}, r"target\.flops is 2; it is the share of floating-point operations to keep and must be in"),
        ({"latency_speedup": 1}, r"target\.latency_speedup is 1; .* must be above 1"),
        ({"latency_speedup": float("inf")}, r"target\.latency_speedup is inf; .* must be above 1"),
        ({"latency_speedup": []}, r"target\.latency_speedup is \[\]; .* a list of numbers above 1, each above the one"),
        ({"latency_speedup": [1.0, 2.0]}, r"target\.latency_speedup is \[1, 2\]; .* a list of numbers above 1, each"),
        ({"latency_speedup": [2.0, 2.0]}, r"target\.latency_speedup is \[2, 2\]; .* each above the one before"),
        ({"latency_speedup": [float("nan")]}, r"target\.latency_speedup is \[nan\]; .* numbers above 1"),
        (
            {"density": 0.5, "flops": 0.5},
            r"target\.density is 0\.5 and target\.flops is 0\.5, but .*: give one of them",
        ),
        ({"flops": 0.5, "latency_speedup": 2}, r"target\.flops is 0\.5 and target\.latency_speedup is 2, but"),
        ({"latency_table": "a.json"}, r"target\.latency_table is 'a\.json', which only a target in time uses: give"),
        (
            {"density": 0.5, "latency_table": "a.json"},
            r"target\.latency_table is 'a\.json', which only a target in time",
        ),
    ],
)
def test_targets_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Target(**options)


def test_one_speedup_and_several_are_read_alike() -> None:
    assert Target(latency_speedup=2).speedups == [2.0]
    assert Target(latency_speedup=[1.5, 2]).speedups == [1.5, 2.0]
    assert Target(density=0.5).speedups == []
