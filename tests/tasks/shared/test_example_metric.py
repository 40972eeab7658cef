"""A metric that counts each example once, on one process and on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from programs import Program
from torch import Tensor

from bplightning.errors import UserError
from bplightning.tasks.shared.example_metric import ExampleMetric


def metric() -> ExampleMetric:
    return ExampleMetric(lambda outputs, batch: outputs, lambda rows: {"sum": rows.sum(), "count": len(rows)})


def batch(*index: int) -> dict[str, Tensor]:
    return {"index": torch.tensor(index)}


def values(found: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in found.items()}


def test_an_example_seen_twice_counts_once_and_its_first_row_stands() -> None:
    one = metric()
    one.update(torch.tensor([[1.0], [2.0]]), batch(3, 0))
    one.update(torch.tensor([[4.0], [9.0]]), batch(1, 3))
    assert values(one.compute()) == {"sum": 7.0, "count": 3.0}


def test_rows_come_in_the_order_of_the_examples() -> None:
    seen: list[Any] = []
    one = ExampleMetric(lambda outputs, batch: outputs, lambda rows: seen.append(rows) or {"none": 0.0})
    one.update(torch.tensor([[1.0, 5.0], [2.0, 6.0]]), batch(9, 4))
    one.compute()
    assert seen[0].tolist() == [[2.0, 6.0], [1.0, 5.0]]
    assert seen[0].dtype == torch.float64


def test_half_precision_outputs_and_plain_numbers() -> None:
    one = ExampleMetric(lambda outputs, batch: outputs, lambda rows: {"mean": rows.mean(), "number": 3})
    one.update(torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16), batch(0, 1))
    found = one.compute()
    assert values(found) == {"mean": 1.5, "number": 3.0}
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in found.values())


def test_it_begins_anew() -> None:
    one = metric()
    one.update(torch.tensor([[1.0]]), batch(0))
    one.reset()
    one.update(torch.tensor([[5.0]]), batch(0))
    assert values(one.compute()) == {"sum": 5.0, "count": 1.0}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # which says less
def test_nothing_seen_is_said() -> None:
    with pytest.raises(UserError, match=r"no example was evaluated, .*: give validation data"):
        metric().compute()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_ranks_together_count_each_example_once(tmp_path: Path) -> None:
    """As programs of their own: a fork of this process, whose threads have computed, can wait for ever."""
    script = Path(__file__).parents[2] / "support" / "metric_on_a_rank.py"
    ranks = [Program(script, str(rank), str(tmp_path), cwd=tmp_path) for rank in range(2)]
    assert [rank.end() for rank in ranks] == [0, 0], ranks[0].said
    assert torch.load(tmp_path / "0") == torch.load(tmp_path / "1") == {"sum": 11111.0, "count": 5.0}
