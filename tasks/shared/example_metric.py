"""A metric that keeps a row of numbers of each example, so that an example seen twice counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bplightning.errors import UserError
from bplightning.tasks.shared.bootstrap import bootstrap

NOTHING = (
    "no example was evaluated, so there is no score: give validation data with at least one, and leave "
    "trainer.limit_val_batches above 0."
)
"""Said where a metric has seen nothing."""


class ExampleMetric(Metric):
    """Metrics computed from a row of numbers of each example.

    Distributed samplers repeat examples to give every rank as many; by their numbers they are told apart.

    Args:
        values: From the model's outputs and a batch to a row of numbers of each example, ``(B, V)``, with the same `V`
            for all batches.
        scores: From the rows ``(N, V)`` of all examples, float64 on the processor, to name and value of each metric.

    Example:
        The share of right answers of two examples, one of them seen twice:

        >>> metric = ExampleMetric(lambda outputs, batch: outputs, lambda rows: {"accuracy": 100 * rows[:, 0].mean()})
        >>> metric.update(torch.tensor([[1.0], [0.0]]), {"index": torch.tensor([0, 1])})
        >>> metric.update(torch.tensor([[1.0]]), {"index": torch.tensor([0])})
        >>> metric.compute()["accuracy"].item()
        50.0
    """

    full_state_update = False
    is_differentiable = False
    index: list[Tensor]
    rows: list[Tensor]
    examples: int | None = None
    """How many examples the last `compute` was of."""
    counted: Tensor | None = None
    """Their rows ``(N, V)``, float64 on the processor."""

    def __init__(
        self, values: Callable[[Any, dict[str, Any]], Tensor], scores: Callable[[Tensor], dict[str, Any]]
    ) -> None:
        super().__init__()
        self.values = values
        self.scores = scores
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Keep the rows of a batch.

        Args:
            outputs: What the task's `evaluate_batch` gave.
            batch: With the examples' numbers, ``index (B,)``.
        """
        self.index.append(batch["index"])
        self.rows.append(self.values(outputs, batch).float())

    def compute(self) -> dict[str, Tensor]:
        """Name to value, 0-d.

        Raises:
            UserError: No example was seen.
        """
        if not len(self.index):
            raise UserError(NOTHING)
        index, rows = dim_zero_cat(self.index).cpu(), dim_zero_cat(self.rows).cpu().double()
        order = torch.argsort(index, stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        self.examples = int(first.sum())
        self.counted = rows[order[first]]
        found = self.scores(self.counted)
        # float32, since not every device has more
        return {name: torch.as_tensor(value, dtype=torch.float32, device=self.device) for name, value in found.items()}

    def intervals(self) -> dict[str, list[float]]:
        """Ends of each metric's 95 % confidence interval, after `compute`."""
        return {} if self.counted is None else bootstrap(self.counted, self.scores)
