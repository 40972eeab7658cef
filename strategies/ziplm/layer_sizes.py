"""How many heads and units each layer is to keep, so that all of them together take so long and no longer.

Each layer has some sizes to choose from; each takes its time, and has an error. What errors of different layers mean
for the whole model is not known: they are weighed against one another, and the weights are found by trying (ZipLM,
arXiv 2302.04089, section 3.2, after SPDY, Frantar and Alistarh 2022, arXiv 2201.13096).

Legend: `T` steps that the time is counted in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TIME_STEPS = 10_000
"""Steps that a budget is counted in. Times are rounded up, so each layer may waste less than one of them."""

MUTATED = 0.1
"""Part of the layers' weights that one try draws anew."""

SPREAD = 10.0
"""Layers' weights are drawn between this and its inverse, evenly in the logarithm."""


@dataclass(frozen=True)
class LayerOptions:
    """What one layer can become.

    Attributes:
        kept: Heads or units kept, one number an option.
        ms: Milliseconds of the layer.
        errors: Errors of its output.
    """

    kept: tuple[int, ...]
    ms: tuple[float, ...]
    errors: tuple[float, ...]


def best_sizes(layers: Sequence[LayerOptions], *, budget_ms: float, weights: Sequence[float]) -> tuple[int, ...] | None:
    """The choice of the least weighted error that takes no longer than the budget, by dynamic programming.

    Args:
        layers: What each can become.
        budget_ms: What all of them may take together, milliseconds.
        weights: Of each layer, what its error counts.

    Returns:
        What each layer keeps; `None` where the smallest choice takes too long.

    >>> layer = LayerOptions(kept=(0, 1, 2), ms=(0.0, 1.0, 2.0), errors=(1.0, 0.4, 0.0))
    >>> best_sizes([layer, layer], budget_ms=2.0, weights=[1.0, 1.0])
    (1, 1)
    >>> best_sizes([layer, layer], budget_ms=2.0, weights=[9.0, 1.0])
    (2, 0)
    >>> best_sizes([layer, layer], budget_ms=0.0, weights=[1.0, 1.0])
    (0, 0)
    """
    if budget_ms < 0:
        return None
    step_ms = budget_ms / TIME_STEPS
    least_T = np.zeros(TIME_STEPS + 1)  # the least error of the layers so far, within so many steps
    chosen: list[np.ndarray] = []
    for layer, weight in zip(layers, weights, strict=True):
        candidates = np.full((len(layer.kept), TIME_STEPS + 1), np.inf)
        for option, (ms, error) in enumerate(zip(layer.ms, layer.errors, strict=True)):
            steps = _steps(ms, step_ms)
            if steps <= TIME_STEPS:
                candidates[option, steps:] = least_T[: TIME_STEPS + 1 - steps] + weight * error
        chosen.append(candidates.argmin(0))
        least_T = candidates.min(0)
    if not math.isfinite(least_T[-1]):
        return None
    left, sizes = TIME_STEPS, []
    for layer, options_T in zip(reversed(layers), reversed(chosen), strict=True):
        option = int(options_T[left])
        left -= _steps(layer.ms[option], step_ms)
        sizes.append(layer.kept[option])
    return tuple(reversed(sizes))


def search_sizes(
    layers: Sequence[LayerOptions],
    *,
    budget_ms: float,
    loss_of: Callable[[tuple[int, ...]], float],
    tries: int,
    seed: int,
) -> tuple[int, ...] | None:
    """The choice of least loss that local search over the layers' weights finds within a budget.

    It begins with equal weights. A try draws a tenth of them anew, and they stay where the model's loss fell. Choices
    that were tried already cost nothing.

    Args:
        layers: What each can become.
        budget_ms: What all of them may take together, milliseconds.
        loss_of: From a choice to the model's loss with it.
        tries: How many weights are tried beside equal ones; with 0 no loss is computed.
        seed: Of the random numbers.

    Returns:
        What each layer keeps; `None` where the smallest choice takes too long.
    """
    random = np.random.default_rng(seed)
    weights = np.ones(len(layers))
    best = best_sizes(layers, budget_ms=budget_ms, weights=weights.tolist())
    if best is None or not tries:
        return best
    losses = {best: loss_of(best)}
    for _ in range(tries):
        drawn = np.exp(random.uniform(-math.log(SPREAD), math.log(SPREAD), len(layers)))
        mutated = random.uniform(size=len(layers)) < MUTATED
        mutated[random.integers(len(layers))] = True
        trial = np.where(mutated, drawn, weights)
        sizes = best_sizes(layers, budget_ms=budget_ms, weights=trial.tolist())
        assert sizes is not None  # what can be afforded does not depend on weights
        if sizes not in losses:
            losses[sizes] = loss_of(sizes)
        if losses[sizes] <= losses[best]:
            best, weights = sizes, trial
    return best


def _steps(ms: float, step_ms: float) -> int:
    """Whole steps that hold a time; more than there are for one that is far beyond the budget, which may be 0."""
    if ms <= 0:
        return 0
    return math.ceil(min(ms / step_ms, TIME_STEPS + 1) - 1e-9) if step_ms else TIME_STEPS + 1
