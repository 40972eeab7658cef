"""Times of calls side by side, and the confidence in what is said of them."""

from __future__ import annotations

import random
import time
from statistics import median

import pytest

from bplightning.measuring.timing import Middle, Times, middle, paired_ratio, side_by_side, speedup_of


def times(*rounds: float) -> Times:
    return Times(rounds, rounds)


def test_calls_take_turns_whose_order_alternates() -> None:
    called: list[str] = []
    calls = {name: (lambda name=name: called.append(name)) for name in "ab"}
    found = side_by_side(calls, seconds=0, block_ms=0, min_rounds=4)
    assert "".join(called[-8:]) == "abbaabba"
    assert [len(each.rounds_ms) for each in found.values()] == [4, 4]


def test_it_goes_on_until_it_is_enough_and_no_longer_than_asked() -> None:
    asked: list[int] = []

    def enough(so_far: dict[str, Times]) -> bool:
        asked.append(len(so_far["a"].rounds_ms))
        return asked[-1] >= 8

    found = side_by_side({"a": lambda: None}, seconds=60, block_ms=0, min_rounds=4, enough=enough)
    assert len(found["a"].rounds_ms) == asked[-1]
    assert asked[0] == 4
    assert 8 <= asked[-1] < 12
    start = time.perf_counter()
    side_by_side({"a": lambda: None}, seconds=0.2, enough=lambda so_far: False)
    assert 0.2 <= time.perf_counter() - start < 2


def test_fast_calls_pass_several_times_in_a_block_and_each_pass_is_kept() -> None:
    spent: list[float] = []
    found = side_by_side({"a": lambda: time.sleep(0.001)}, seconds=0, block_ms=100, min_rounds=3, between=spent.append)
    each = found["a"]
    assert len(each.rounds_ms) == len(spent) == 3
    assert len(each.passes_ms) % 3 == 0
    assert len(each.passes_ms) >= 9
    assert each.rounds_ms[0] == pytest.approx(sum(each.passes_ms[: len(each.passes_ms) // 3]) * 3 / len(each.passes_ms))
    assert spent == sorted(spent)


def test_p90_is_that_of_single_passes() -> None:
    assert Times((5.0,), tuple(float(i) for i in range(11))).p90_ms == 9
    assert times(3.0).p90_ms == 3


def test_ratio_is_the_median_of_pairs() -> None:
    slow, fast = times(2, 2, 6, 6, 6, 6), times(1, 1, 1, 3, 3, 3)
    assert paired_ratio(slow, fast) == Middle(2, low=2, high=6)


@pytest.mark.parametrize(("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (100, 40, 61)])
def test_interval_ends_at_the_order_statistics_of_the_tables(count: int, low: int, high: int) -> None:
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    assert middle(values) == Middle(median(values), low, high)


def test_few_values_have_no_interval_and_many_do_not_overflow() -> None:
    assert middle([1.0] * 5) == Middle(1.0, None, None)
    assert not middle([1.0] * 5).within(0.5)
    many = middle(list(range(5001)))
    assert many.value == 2500
    assert many.low is not None
    assert 2500 - many.low == pytest.approx(1.96 / 2 * 5001**0.5, abs=2)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    draw = random.Random(0)
    made = [middle([draw.expovariate(1) for _ in range(21)]) for _ in range(2000)]
    true = 0.6931
    held = sum(each.low <= true <= each.high for each in made if each.low is not None and each.high is not None)
    assert 0.94 < held / len(made) < 0.99


def test_within_is_half_the_interval_over_the_value() -> None:
    assert Middle(2.0, 1.96, 2.04).within(0.0201)
    assert not Middle(2.0, 1.96, 2.04).within(0.0199)


def test_a_speed_up_is_settled_when_rounds_interval_and_medians_agree() -> None:
    def times(rounds: list[float], passes: list[float] | None = None) -> Times:
        return Times(tuple(rounds), tuple(passes or rounds))

    steady = times([2.0] * 20), times([1.0] * 20)
    assert speedup_of(*steady, tolerance=0.05) == {"ratio": 2.0, "low": 2.0, "high": 2.0, "settled": True}
    few = times([2.0] * 19), times([1.0] * 19)
    wide = times([1.0, 3.0] * 10), times([1.0] * 20)
    contradicted = times([2.0] * 20, [5.26] * 20), times([1.0] * 20, [1.0] * 20)  # as if most passes were slow ones
    assert [speedup_of(*each, tolerance=0.05)["settled"] for each in (few, wide, contradicted)] == [False] * 3
