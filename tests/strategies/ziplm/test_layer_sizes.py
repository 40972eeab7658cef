"""Sizes by dynamic programming against trying all of them, and a search that finds better weights than equal ones."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from bplightning.strategies.ziplm.layer_sizes import LayerOptions, best_sizes, search_sizes


def made_layers(seed: int) -> list[LayerOptions]:
    random = np.random.default_rng(seed)
    layers = []
    for _ in range(4):
        ms = np.sort(np.round(random.uniform(0, 4, 4), 1)).tolist()
        errors = np.sort(random.uniform(0, 1, 4))[::-1].tolist()
        layers.append(LayerOptions((0, 1, 2, 3), (0.0, *ms[1:]), tuple(errors)))
    return layers


@pytest.mark.parametrize("seed", range(6))
def test_no_affordable_choice_has_a_smaller_error(seed: int) -> None:
    layers = made_layers(seed)
    weights = np.random.default_rng(seed).uniform(0.1, 3, 4).tolist()
    found = best_sizes(layers, budget_ms=6.05, weights=weights)
    assert found is not None

    def total(sizes: tuple[int, ...], what: str, scale: Any = (1, 1, 1, 1)) -> float:
        return sum(s * getattr(layer, what)[size] for layer, size, s in zip(layers, sizes, scale, strict=True))

    affordable = [sizes for sizes in product(range(4), repeat=4) if total(sizes, "ms") <= 6.05]
    assert found in affordable
    assert total(found, "errors", weights) == pytest.approx(min(total(s, "errors", weights) for s in affordable))


def test_what_cannot_be_afforded_is_none() -> None:
    layer = LayerOptions((1, 2), (1.0, 2.0), (0.5, 0.0))
    assert best_sizes([layer, layer], budget_ms=1.9, weights=[1, 1]) is None
    assert best_sizes([layer, layer], budget_ms=2.0, weights=[1, 1]) == (1, 1)
    assert best_sizes([layer], budget_ms=-0.1, weights=[1]) is None


def test_the_search_lowers_the_loss_and_tries_each_choice_once() -> None:
    """The model's loss is of the last layer's size alone, which equal weights know nothing of."""
    layers = [LayerOptions((0, 1, 2, 3), (0.0, 1.0, 2.0, 3.0), (1.0, 0.5, 0.2, 0.0)) for _ in range(4)]
    tried: list[tuple[int, ...]] = []

    def loss_of(sizes: tuple[int, ...]) -> float:
        tried.append(sizes)
        return 3.0 - sizes[-1]

    found = [search_sizes(layers, budget_ms=6.0, loss_of=loss_of, tries=tries, seed=0) for tries in (1, 40)]
    assert found[1] is not None
    assert found[1][-1] == 3 > tried[0][-1]
    del tried[:]
    search_sizes(layers, budget_ms=6.0, loss_of=loss_of, tries=40, seed=0)
    assert len(tried) == len(set(tried)) <= 41
    del tried[:]
    assert search_sizes(layers, budget_ms=6.0, loss_of=loss_of, tries=0, seed=0) is not None
    assert not tried
