"""Measuring a latency table: compact copies of a model are timed side by side with it.

Single layers are not timed, because their weights and activations would be in the cache. Instead, in each copy every
layer of one role keeps the same number of heads or units. The time of one layer is the difference to the copy that
keeps none, divided by the number of layers. Copies are timed in turns with the dense model, as reports time a compact
model, and only the ratio is used, so a machine that becomes slower does not distort the table. Each copy has its own
weights for the layers, since shared ones would be in the cache.

Pruning removes from all roles at once, and different numbers in each layer, and such a model does not take exactly the
sum of the times. Further copies, without some heads and units chosen at random, correct the sums.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, median

import torch
from torch import Tensor, nn

from bplightning.compaction.example_inputs import random_inputs
from bplightning.errors import UserError
from bplightning.io.progress_bar import OnProgress, no_progress
from bplightning.io.provenance import now
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink
from bplightning.measuring import measure
from bplightning.measuring.latency_shapes import ModelShape
from bplightning.measuring.latency_table import LatencyTable, RoleTimes
from bplightning.measuring.random_copies import compact_copy, kept_at_random
from bplightning.measuring.timing import INTERVAL_ROUNDS, paired_ratio

SECONDS = 60.0
"""Time spent on a table, in seconds."""

AT_ONCE = 8
"""Number of copies in memory at a time."""

MOST_HEADS = 16
"""Up to this number of heads, every count is measured; above, a geometric grid of counts."""

STEP = math.sqrt(0.5)
"""Ratio of each count in a geometric grid to the next larger one."""

SMALLEST = 1 / 100
"""Smallest count above 0 in a geometric grid, as a fraction of all units."""

TOGETHER = tuple((part, seed) for part in (0.05, 0.1, 0.25, 0.5, 0.75) for seed in (1001, 1002))
"""Fractions of all heads and units, and seeds of their random choice, in the copies that correct the sums."""

RANDOM = ""
"""Stands for a role in the key of a copy whose heads and units were chosen at random."""

Kept = Mapping[str, Tensor]
"""Name of each group that shrinks to the indices that stay."""

_Copy = tuple[str, int]
"""A role and the count that each of its layers keeps, or `RANDOM` and a number."""


def measured_table(
    model: nn.Module,
    shape: tuple[int, int],
    *,
    device: torch.device,
    dtype: str = "float32",
    seconds: float = SECONDS,
    on_progress: OnProgress = no_progress,
) -> LatencyTable:
    """Measure the latency table of a dense model.

    Args:
        model: The model, without masks, on the device and in the precision to measure in; it stays unchanged.
        shape: Rows and tokens; fewer tokens where the model has no room for so many.
        device: The device of the model.
        dtype: Its precision, for the table.
        seconds: Time spent, in seconds; slow models take longer, because every copy runs six rounds.
        on_progress: Is told of progress, never while anything is timed.

    Raises:
        UserError: Layers of one role differ, nothing can be removed, or removing everything saves no time.
    """
    layout = PrunableLayout.of(model)
    described = ModelShape.of(layout)
    if not described.roles:
        raise UserError(
            "the model has no head or unit that can be removed: a latency table needs a model that has some."
        )
    (shape,) = measure.fitting(model, [shape])
    groups = can_shrink(layout)
    alike = {role: [*grid(of.size, heads=of.kind == "heads"), of.size] for role, of in described.roles.items()}
    copies = _copies(groups, alike)
    dense: list[float] = []
    ratios: dict[_Copy, float] = {}
    names, parts = list(copies), math.ceil(len(copies) / AT_ONCE)
    for done in range(parts):
        on_progress(done / parts, f"{len(copies)} compact copies and the dense model, {measure.shape_name(*shape)}")
        own = names[done::parts]  # copies of every kind, so that a slow period does not distort one curve
        took_ms, found = _beside(model, [_copy_of(layout, copies[name]) for name in own], shape, seconds / parts)
        dense.append(took_ms)
        ratios |= {name: min(ratio, 1.0) for name, ratio in zip(own, found, strict=True)}
    on_progress(1.0, "done")
    dense_ms = median(dense)
    roles = {}
    for role, of in described.roles.items():
        shares = not_falling([*(ratios[role, count] for count in alike[role][:-1]), 1.0])
        ms = tuple((share - shares[0]) / of.layers * dense_ms for share in shares)
        roles[role] = RoleTimes(of, tuple(alike[role]), ms)
    together = [
        (sum(roles[each.role].of_count(len(kept[each.name])) for each in groups), ratios[RANDOM, index] * dense_ms)
        for (role, index), kept in copies.items()
        if role == RANDOM
    ]
    full = sum(of.shape.layers * of.ms[-1] for of in roles.values())
    if full == 0:
        raise UserError(
            f"without any head or unit the model is not faster at {measure.shape_name(*shape)}: give more seconds, a "
            "larger shape, or an idle machine."
        )
    sums, took = together_line(together, last=(full, dense_ms))
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
        sums_ms=sums,
        together_ms=took,
    )


def grid(size: int, *, heads: bool) -> list[int]:
    """Numbers of heads or units to keep in the copies of a role: from none to less than all, ascending.

    Numbers of units are odd: pruning leaves widths that kernels are not optimized for, so those are measured.

    Args:
        size: Number of heads or units in a dense layer.
        heads: Whether they are heads.

    >>> grid(4, heads=True), grid(100, heads=False)
    ([0, 1, 2, 3], [0, 1, 3, 5, 7, 9, 13, 19, 25, 35, 51, 71])
    """
    if heads and size <= MOST_HEADS:
        return list(range(size))
    steps = math.floor(math.log(SMALLEST) / math.log(STEP) + 1e-9)
    counts = {round(size * STEP**step) for step in range(1, steps + 1)}
    return sorted({0, 1, *(count if heads else count | 1 for count in counts if count)} - {size, size + 1})


def not_falling(values: Sequence[float]) -> list[float]:
    """The closest values that do not fall (least squares): neighbours that fall are pooled.

    More heads or units never take less time; where a measurement says so, it is noise. A running maximum would keep the
    highest noise, and make everything after it too slow.

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


def together_line(
    points: Sequence[tuple[float, float]], *, last: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The curve that corrects sums of layer times.

    Args:
        points: For each copy, the sum of its layers' times and its measured time, in milliseconds; one copy has no head
            or unit.
        last: The same for the dense model.

    Returns:
        The sums, strictly rising, and the measured times, which do not fall.

    >>> together_line([(2.0, 5.0), (0.0, 1.0), (2.0, 4.0), (3.0, 4.0), (9.0, 8.0)], last=(8.0, 9.0))
    ((0.0, 2.0, 3.0, 8.0), (1.0, 4.25, 4.25, 9.0))
    """
    several: dict[float, list[float]] = {}
    for total, took in sorted(points):
        if total < last[0]:
            several.setdefault(total, []).append(took)
    line = not_falling([*(fmean(took) for took in several.values()), last[1]])
    return (*several, last[0]), tuple(line)


def _copies(groups: Sequence[Group], alike: Mapping[str, Sequence[int]]) -> dict[_Copy, Kept]:
    """The heads and units that each copy keeps: counts by role, then random fractions of all roles, then none."""
    copies: dict[_Copy, Kept] = {}
    for role, counts in alike.items():
        for count in counts[:-1]:
            copies[role, count] = {each.name: torch.arange(count) for each in groups if each.role == role}
    for index, (part, seed) in enumerate(TOGETHER):
        copies[RANDOM, index] = kept_at_random(groups, dict.fromkeys(alike, part), seed=seed)
    copies[RANDOM, len(TOGETHER)] = {each.name: torch.arange(0) for each in groups}
    return copies


def _copy_of(layout: PrunableLayout, kept: Kept) -> nn.Module:
    layers = {member.name for member in layout.members}
    named = layout.model.named_parameters(remove_duplicate=False)
    return copy.deepcopy(compact_copy(layout, kept), {id(each): each for name, each in named if name not in layers})


def _beside(
    model: nn.Module, others: Sequence[nn.Module], shape: tuple[int, int], seconds: float
) -> tuple[float, list[float]]:
    """Median milliseconds of a model, and those of others as fractions of it."""
    together = dict(zip(map(str, range(1 + len(others))), (model, *others), strict=True))
    found = measure.latency(
        together, partial(random_inputs, model), [shape], seconds=seconds, min_rounds=INTERVAL_ROUNDS
    )
    dense, *copied = (found[name][measure.shape_name(*shape)] for name in together)
    return dense.median_ms, [paired_ratio(each, dense).value for each in copied]
