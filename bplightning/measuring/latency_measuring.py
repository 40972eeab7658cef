"""Measuring a latency table: compact copies of a model, timed side by side with it.

Layers are not timed alone, where their weights and activations would be in the cache. In each copy every layer of one
role keeps as many heads or units; what one layer takes is the difference from the copy that keeps none, over the number
of layers. Copies are timed in turns with the dense model, as reports time a compact model, and only the ratio counts,
so that a machine that becomes slower does not bend the table. The layers of a copy have weights of their own: those
shared with other copies would be in the cache.

Pruning takes from all roles together, and unlike numbers from layer to layer, and what that takes is not quite the sum:
by further copies, which lost heads and units at random, sums are put right.
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
from bplightning.io.progress_bar import Watch, unwatched
from bplightning.io.provenance import now
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink
from bplightning.measuring import measure
from bplightning.measuring.latency_shapes import ModelShape
from bplightning.measuring.latency_table import LatencyTable, RoleTimes
from bplightning.measuring.random_copies import compact_copy, kept_at_random

SECONDS = 60.0
"""Time spent on a table, in seconds."""

AT_ONCE = 8
"""Copies that are in memory at a time."""

MOST_HEADS = 16
"""Every number of heads is measured up to so many; of more than that, a geometric grid."""

STEP = math.sqrt(0.5)
"""Of a geometric grid: each count over the next greater one."""

SMALLEST = 1 / 100
"""Part of all units that a geometric grid goes down to, above none."""

ROUNDS = 6
"""Fewest rounds of a copy, however slow."""

TOGETHER = tuple((part, seed) for part in (0.05, 0.1, 0.25, 0.5, 0.75) for seed in (1001, 1002))
"""Parts of all heads and all units that are kept, at random by a seed, in the copies by which sums are put right."""

RANDOM = ""
"""In place of a role's name: a copy that lost heads and units at random."""

Kept = Mapping[str, Tensor]
"""Name of each group that shrinks to the indices that stay."""

_Copy = tuple[str, int]
"""A role and how many each of its layers keeps, or `RANDOM` and a number."""


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
        UserError: Layers of one role differ, nothing can be removed, or the model takes no longer with what can.
    """
    layout = PrunableLayout.of(model)
    described = ModelShape.of(layout)
    if not described.roles:
        raise UserError(
            "the model has no head or unit that can be removed: there is nothing to make a latency table of."
        )
    (shape,) = measure.fitting(model, [shape])
    groups = can_shrink(layout)
    alike = {role: [*grid(of.size, heads=of.kind == "heads"), of.size] for role, of in described.roles.items()}
    copies = _copies(groups, alike)
    dense: list[float] = []
    ratios: dict[_Copy, float] = {}
    names, parts = list(copies), math.ceil(len(copies) / AT_ONCE)
    for done in range(parts):
        watch(done / parts, f"{len(copies)} compact copies beside the dense model, {measure.shape_name(*shape)}")
        own = names[done::parts]  # of every kind, so that what bends one part bends no curve
        took_ms, found = _beside(model, [_copy_of(layout, copies[name]) for name in own], shape, seconds / parts)
        dense.append(took_ms)
        ratios |= {name: min(ratio, 1.0) for name, ratio in zip(own, found, strict=True)}
    watch(1.0, "done")
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
            f"without any head or unit the model takes as long at {measure.shape_name(*shape)}: take more seconds, a "
            "larger shape, or a machine that does nothing else."
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
    return sorted({0, 1, *(count if heads else count | 1 for count in counts if count)} - {size, size + 1})


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


def together_line(
    points: Sequence[tuple[float, float]], *, last: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The line by which sums are put right.

    Args:
        points: Of copies, one without any head or unit among them, what their layers take in sum, and what they take;
            milliseconds.
        last: The same of the dense model.

    Returns:
        The sums, strictly rising, and what is taken, which does not fall.

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
    """What the copies keep: of each role every count but all, then of all roles parts at random, and nothing."""
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
    """Median milliseconds of a model, and of others as parts of that."""
    together = dict(zip(map(str, range(1 + len(others))), (model, *others), strict=True))
    found = measure.latency(together, partial(_inputs, model), [shape], seconds=seconds, min_rounds=ROUNDS)
    dense, *copied = (found[name][measure.shape_name(*shape)] for name in together)
    ratios = [median(b / a for a, b in zip(dense.rounds_ms, each.rounds_ms, strict=True)) for each in copied]
    return dense.median_ms, ratios


def _inputs(model: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    dtype = next(model.parameters()).dtype
    made = random_inputs(model, rows, tokens)
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in made.items()}
