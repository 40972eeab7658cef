"""Parameters of which a part is enough every day: `make test` runs that part, `make matrix` all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest

MATRIX = pytest.mark.matrix
"""On what only `make matrix` runs."""


def thinned(every: Iterable[tuple[Any, ...]], kept: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Each case as one of pytest's parameters; those that are not kept run in `make matrix` alone.

    Args:
        every: The full product.
        kept: A part of it, in which each value is tried with some of the others.
    """
    every, kept = list(every), list(kept)
    assert all(case in every for case in kept), [case for case in kept if case not in every]
    return [pytest.param(*case, marks=() if case in kept else MATRIX) for case in every]


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """The product of some axes: every pair of values of the first ones every day, each with one of the last's.

    So each value of the last meets each of any other axis where those before the last are as long.
    """
    kept = []
    for indices in product(*(range(len(axis)) for axis in axes)):
        if sum(indices) % len(axes[-1]) == 0:
            kept.append(tuple(axis[index] for axis, index in zip(axes, indices, strict=True)))
    return thinned(product(*axes), kept)


def one_of_each(every: Iterable[str], kept: Iterable[str]) -> list[Any]:
    """Names as parameters, of which those in `kept` run every day.

    Args:
        every: All names.
        kept: Names, among them some of `every`.
    """
    kept = set(kept)
    return [pytest.param(name, marks=() if name in kept else MATRIX) for name in every]
