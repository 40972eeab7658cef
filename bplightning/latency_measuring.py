"""Measuring a latency table: compact copies of a model, each timed side by side with it.

Layers are not timed alone, where their weights and activations would be in the cache. In each copy every layer of one
role keeps as many heads or units; what one layer takes is the difference from the copy that keeps none, over the number
of layers. A copy is timed in turns with the dense model, as reports time a compact model, and only the ratio counts, so
that a machine that becomes slower does not bend the table. A copy has weights of its own: those that it shared with
others would be in the cache.

Roles are pruned together, and what they then take is not quite the sum: by further copies, in which all layers keep the
same part of their heads and units, sums are put right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bplightning import measure
from bplightning.errors import UserError
from bplightning.example_inputs import random_inputs
from bplightning.latency_shapes import ModelShape
from bplightning.latency_table import LatencyTable, RoleTimes, part_of
from bplightning.layout import PrunableLayout
from bplightning.planning_random import compact_copy
from bplightning.report import now
from bplightning.resizing import can_shrink, size_of
from bplightning.watching import Watch, unwatched

SECONDS = 60.0
"""Time spent on a table, in seconds."""

MOST_HEADS = 16
"""Every number of heads is measured up to so many; of more than that, a geometric grid."""

STEP = math.sqrt(0.5)
"""Of a geometric grid: each count over the next greater one."""

SMALLEST = 1 / 100
"""Part of all units that a geometric grid goes down to, above none."""

ROUNDS = 6
"""Fewest rounds of a copy, however slow."""

TOGETHER = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75)
"""Parts of all heads and all units that are kept in the copies by which sums are put right."""


class _Point(NamedTuple):
    """What a copy is made for: one role with so many kept, or all roles with such a part of all kept."""

    role: str | None
    keeps: float


def measured_table(
    model: nn.Module,
    shape: tuple[int, int],
    *,
    device: torch.device,
    dtype: str = "float32",
    seconds: float = SECONDS,
    watch: Watch = unwatched,
) -> LatencyTable:
    """Measure the latency table of a dense model.

    Args:
        model: The model, without masks, on the device and in the precision to measure in; it is left as it is.
        shape: Rows and tokens, as far as the model can take so many.
        device: Where the model is.
        dtype: Its precision, for the table.
        seconds: Time spent, in seconds; slow models take longer, for six rounds of every copy.
        watch: Is told of progress, never while anything is timed.

    Raises:
        UserError: Layers of one role differ, or nothing can be removed.
    """
    layout = PrunableLayout.of(model)
    described = ModelShape.of(layout)
    if not described.roles:
        raise UserError(
            "the model has no head or unit that can be removed: there is nothing to make a latency table of."
        )
    (shape,) = measure.fitting(model, [shape])
    points = [_Point(role, k) for role, of in described.roles.items() for k in grid(of.size, heads=of.kind == "heads")]
    points += [_Point(None, part) for part in TOGETHER]
    dense: list[float] = []
    ratios: dict[_Point, float] = {}
    for done, point in enumerate(points):
        watch(done / len(points), f"{len(points)} compact copies beside the dense model, {measure.shape_name(*shape)}")
        took_ms, ratios[point] = _beside(model, _copy_of(layout, point), shape, seconds / len(points))
        dense.append(took_ms)
    watch(1.0, "done")
    dense_ms = median(dense)
    roles = {}
    for role, of in described.roles.items():
        kept = [*grid(of.size, heads=of.kind == "heads"), of.size]
        shares = not_falling([*(min(ratios[_Point(role, count)], 1.0) for count in kept[:-1]), 1.0])
        ms = tuple((share - shares[0]) / of.layers * dense_ms for share in shares)
        roles[role] = RoleTimes(of, tuple(kept), ms)
    took = not_falling([*(min(ratios[_Point(None, part)], 1.0) for part in TOGETHER), 1.0])
    return LatencyTable(
        model_type=described.model_type,
        model_class=described.model_class,
        hidden_size=described.hidden_size,
        batch_size=shape[0],
        length=shape[1],
        dtype=dtype,
        machine=measure.machine(device),
        date=now(),
        dense_ms=dense_ms,
        roles=roles,
        kept_together=(*TOGETHER, 1.0),
        ms_together=tuple(share * dense_ms for share in took),
    )


def grid(size: int, *, heads: bool) -> list[int]:
    """How many heads or units to keep in the copies of a role: from none to less than all, ascending.

    Units are odd in number: pruning leaves widths that no kernel was made for, and those are what is to be foreseen.

    Args:
        size: How many there are.
        heads: Whether they are heads.

    >>> grid(4, heads=True), grid(100, heads=False)
    ([0, 1, 2, 3], [0, 1, 3, 5, 7, 9, 13, 19, 25, 35, 51, 71])
    """
    if heads and size <= MOST_HEADS:
        return list(range(size))
    steps = math.floor(math.log(SMALLEST) / math.log(STEP) + 1e-9)
    counts = {round(size * STEP**step) for step in range(1, steps + 1)}
    return sorted({0, *(count if heads else count | 1 for count in counts if count)} - {size, size + 1})


def not_falling(values: Sequence[float]) -> list[float]:
    """The closest values that do not fall (least squares): neighbours that do are pooled.

    More heads or units never take less time; where it was measured so, it was chance. A running maximum would keep the
    highest of several chances, and so make everything that follows too slow.

    Args:
        values: At least one.

    >>> not_falling([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _copy_of(layout: PrunableLayout, point: _Point) -> nn.Module:
    kept = {}
    for group in can_shrink(layout):
        if point.role in (None, group.role):
            count = part_of(size_of(group), point.keeps) if point.role is None else int(point.keeps)
            kept[group.name] = torch.arange(count)
    return copy.deepcopy(compact_copy(layout, kept))


def _beside(model: nn.Module, other: nn.Module, shape: tuple[int, int], seconds: float) -> tuple[float, float]:
    """Median milliseconds of a model, and of another one as a part of that."""
    pair = {"dense": model, "copy": other}
    found = measure.latency(pair, partial(_inputs, model), [shape], seconds=seconds, min_rounds=ROUNDS)
    dense, copied = (found[name][measure.shape_name(*shape)] for name in pair)
    ratio = median(b / a for a, b in zip(dense.rounds_ms, copied.rounds_ms, strict=True))
    return dense.median_ms, ratio


def _inputs(model: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    dtype = next(model.parameters()).dtype
    made = random_inputs(model, rows, tokens)
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in made.items()}
