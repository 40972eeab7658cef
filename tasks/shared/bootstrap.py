"""How far metrics may lie from those of more examples: confidence intervals by bootstrap.

Source: B. Efron, *Bootstrap methods: another look at the jackknife*, 1979, percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RESAMPLES = 200
"""Sets of examples that are drawn."""

DRAWN = 10_000_000
"""Most examples that are drawn for all sets together; large sets have narrow intervals with fewer draws, too."""


def bootstrap(rows: Tensor, scores: Callable[[Tensor], dict[str, Any]]) -> dict[str, list[float]]:
    """Ends of the 95 % confidence interval of each metric.

    Args:
        rows: ``(N, V)``, one row of numbers for each example.
        scores: From such rows to name and value of each metric.

    Returns:
        Name to the two ends. A metric that is the same in every set, such as an accuracy of 100 %, is left out: the
        bootstrap knows nothing of examples that are unlike all it has seen.

    >>> rows = torch.tensor([[1.0]] * 90 + [[0.0]] * 10)
    >>> [[low, high]] = bootstrap(rows, lambda rows: {"accuracy": 100 * rows.mean()}).values()
    >>> 82 < low < 86, 94 < high < 98
    (True, True)
    """
    count = len(rows)
    if count < 2:
        return {}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    for _ in range(max(40, min(RESAMPLES, DRAWN // count))):
        drawn = rows[torch.randint(count, (count,), generator=generator)]
        for name, value in scores(drawn).items():
            found.setdefault(name, []).append(float(value))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    intervals = {}
    for name, values in found.items():
        low, high = torch.tensor(values, dtype=torch.float64).quantile(ends).tolist()
        if low < high:
            intervals[name] = [low, high]
    return intervals
