"""Measuring the possible gain of pruning on this machine, before training.

Compact copies of the model, pruned at random, are timed along with it in one run.

Legend: `B` rows of a batch, `L` tokens of each row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bplightning.compaction.example_inputs import random_inputs
from bplightning.compaction.loading import DTYPES
from bplightning.errors import UserError
from bplightning.io.progress_bar import OnProgress, no_progress
from bplightning.layout.groups import Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group
from bplightning.measuring import measure
from bplightning.measuring.random_copies import compact_copy, kept_at_random
from bplightning.measuring.timing import INTERVAL_ROUNDS, Middle, Times, paired_ratio
from bplightning.planning.inventory import shrinks
from bplightning.planning.schema import Measured, MeasuredModel, Plan

DEFAULT_DENSITIES = (0.75, 0.5, 0.25, 0.1, 0.05)
"""Densities measured by default, along with the one that the strategy's schedule ends at."""

WORTHWHILE = 1.1
"""Halving the density is worthwhile if it makes the model at least this many times faster."""

MakeInputs = Callable[[int, int], Mapping[str, Tensor]]
"""Returns a model's keyword arguments for `B` and `L`."""


@dataclass(frozen=True)
class Measuring:
    """Settings of the measurement.

    Args:
        densities: Fractions of heads and units to keep, each above 0 and at most 1. Default: 0.75, 0.5, 0.25, 0.1,
            0.05, and the density that the strategy's schedule ends at, if any.
        batch_sizes: Rows of a batch, each 1 or more.
        lengths: Tokens of each row, each 1 or more, and no more than the model has room for; every batch size is timed
            with every length. For images it has no effect.
        device: Device that the models run on.
        dtype: Precision of the models.
        seconds: Time spent on each shape, in seconds; slow models take longer, for six rounds.
    """

    densities: tuple[float, ...] | None = None
    batch_sizes: tuple[int, ...] = tuple(dict.fromkeys(rows for rows, _ in measure.DEFAULT_SHAPES))
    lengths: tuple[int, ...] = tuple(dict.fromkeys(tokens for _, tokens in measure.DEFAULT_SHAPES))
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.densities is not None and not (self.densities and all(0 < each <= 1 for each in self.densities)):
            raise UserError(
                f"--measure.densities is {list(self.densities)}; it must name fractions to keep, at least one, each "
                "above 0 and at most 1, such as [0.5,0.25]."
            )
        for name, numbers in (("batch_sizes", self.batch_sizes), ("lengths", self.lengths)):
            if not numbers or min(numbers) < 1:
                raise UserError(
                    f"--measure.{name} is {list(numbers)}; it must name whole numbers, at least one, each 1 or more, "
                    "such as [1,8]."
                )
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--measure.seconds is {self.seconds:g}; it must be above 0 and not infinite.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--measure.device is 'cuda', but torch finds no GPU here: give --measure.device cpu.")


class _Point(NamedTuple):
    """The fraction that one compact copy keeps, of all groups that can shrink and by role."""

    density: float
    by_role: dict[str, float]
    target: bool = False


def measured(
    model: nn.Module,
    plan: Plan,
    measuring: Measuring,
    *,
    make_inputs: MakeInputs | None = None,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> Measured:
    """Time compact copies of a model along with it; the model stays unchanged.

    Args:
        model: The model of the plan.
        plan: The plan, with the groups that can shrink and the density at which the schedule ends.
        measuring: Densities, shapes and device.
        make_inputs: Returns the model's keyword arguments for `B` and `L`; by default random tokens or images.
        seed: Seed of the choice of heads and units to remove.
        on_progress: Is told of progress, never while anything is timed.

    Returns:
        The plan's part ``measured``; it has no copies where pruning makes nothing smaller.
    """
    device, dtype = torch.device(measuring.device), DTYPES[measuring.dtype]
    own = next(model.parameters())
    if (own.device.type, own.dtype) != (device.type, dtype):
        model = copy.deepcopy(model).to(device, dtype)
    layout = PrunableLayout.of(model)
    free = {group["name"] for group in plan["groups"] if shrinks(group)}
    shrinking = [group for group in layout.groups if group.name in free]
    roles = {group.role for group in shrinking}
    points, shapes = [_Point(1.0, dict.fromkeys(roles, 1.0))], []
    if shrinking:
        points += [*_asked(plan, roles, measuring.densities), _Point(0.0, dict.fromkeys(roles, 0.0))]
        shapes = _shapes(model, measuring)
    inputs = _in_dtype(make_inputs or (lambda rows, tokens: random_inputs(model, rows, tokens)), dtype)

    steps = len(points) + len(shapes)
    models, worked = [], []
    for done, point in enumerate(points):
        on_progress(
            done / steps, f"compacting at a density of {100 * point.density:.4g} %" if done else "the dense model"
        )
        models.append(compact_copy(layout, kept_at_random(shrinking, point.by_role, seed=seed)) if done else model)
        worked.append({measure.shape_name(*shape): measure.flops(models[-1], inputs(*shape)) for shape in shapes})
    times: dict[str, dict[str, Times]] = {str(index): {} for index in range(len(models))}
    for done, shape in enumerate(shapes, len(points)):
        on_progress(done / steps, f"timing {len(models)} models, {measure.shape_name(*shape)}")
        together = dict(zip(times, models, strict=True))
        found = measure.latency(together, inputs, [shape], seconds=measuring.seconds, min_rounds=INTERVAL_ROUNDS)
        for name, latency in found.items():
            times[name] |= latency
    on_progress(1.0, "done")

    dense, *others = (
        _row(point, layout, PrunableLayout.of(each, layout.family), shrinking, (worked[0], flops), (times["0"], took))
        for point, each, flops, took in zip(points, models, worked, times.values(), strict=True)
    )
    limit = others.pop() if others else None
    rows = [*others, *([] if limit is None else [limit]), dense]
    return Measured(
        machine=measure.machine(device),
        dtype=measuring.dtype,
        seed=seed,
        dense=dense,
        at=others,
        limit=limit,
        saturation={
            shape: saturation([(row["kept"], 1 / row["speedup"][shape]) for row in rows])
            for shape in (dense["speedup"] if others else ())
        },
    )


def saturation(times: Iterable[tuple[float, float]]) -> float | None:
    """The density below which halving it again makes a model less than `WORTHWHILE` times faster.

    Times are interpolated between the measured ones.

    Args:
        times: Densities, with 0 and 1 among them, each with its relative time.

    Returns:
        The density; 1 where already the first halving gains less, `None` where halving still gains as much at the
        lowest density measured above 0.

    >>> saturation([(0.0, 0.3), (0.05, 0.335), (1.0, 1.0)])  # 0.3 + 0.7 d = 1.1 (0.3 + 0.35 d), where d = 0.03 / 0.315
    0.0952
    """
    known = sorted(dict(times).items())
    lowest = min(density for density, _ in known if density > 0)

    def time(density: float) -> float:
        for (left, below), (right, above) in pairwise(known):
            if density <= right:
                return below + (above - below) * (density - left) / (right - left)
        return known[-1][1]

    def worth(density: float) -> float:
        return time(density) - WORTHWHILE * time(density / 2)

    # Linear between these corners, so the first root is exact.
    corners = sorted({each for density, _ in known for each in (density, 2 * density) if each <= 1})
    for left, right in pairwise(corners):
        before, after = worth(left), worth(right)
        if after >= 0:
            end = round(left + (right - left) * -before / (after - before), 4)
            return end if end >= lowest else None
    return 1.0


# -- densities, shapes and rows ----------------------------------------------------------------------------------------


def _asked(plan: Plan, roles: Iterable[str], densities: Sequence[float] | None) -> list[_Point]:
    """The densities to measure, descending, each once; by default with that of the schedule, by role."""
    points = [_Point(density, dict.fromkeys(roles, density)) for density in densities or DEFAULT_DENSITIES]
    estimates = plan["estimates"]
    if densities is None and estimates is not None and estimates["density_from"] == "schedule":
        (target,) = estimates["at"]
        by_role = {role: target["by_role"][role] for role in roles}
        points.append(_Point(target["density"], by_role, target=True))
    by_density = {
        round(point.density, 3): point for point in points
    }  # the schedule's, which comes last, replaces an equal one
    return sorted(by_density.values(), key=lambda point: point.density, reverse=True)


def _shapes(model: nn.Module, measuring: Measuring) -> list[tuple[int, int]]:
    asked = [(rows, tokens) for tokens in measuring.lengths for rows in measuring.batch_sizes]
    return list(dict.fromkeys(measure.fitting(model, asked)))


def _in_dtype(make_inputs: MakeInputs, dtype: torch.dtype) -> MakeInputs:
    """The same inputs, with images in the precision of the model."""

    def made(rows: int, tokens: int) -> dict[str, Tensor]:
        inputs = make_inputs(rows, tokens)
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}

    return made


def _row(
    point: _Point,
    dense: PrunableLayout,
    layout: PrunableLayout,
    shrinking: Sequence[Group],
    flops: tuple[Mapping[str, int], Mapping[str, int]],
    times: tuple[Mapping[str, Times], Mapping[str, Times]],
) -> MeasuredModel:
    """The row of one model; the FLOPs and times of the dense model come first."""
    names = {group.name for group in shrinking}
    ideal = {shape: flops[0][shape] / count for shape, count in flops[1].items()}
    faster = {shape: paired_ratio(times[0][shape], own) for shape, own in times[1].items()}
    left, all_of_it = (
        sum(_weights(each.model, group.members) for group in each.groups if group.name in names)
        for each in (layout, dense)
    )
    return MeasuredModel(
        density=point.density,
        target=point.target,
        by_role=dict(point.by_role),
        kept=left / all_of_it if all_of_it else 1.0,
        heads=sum(group.heads for group in layout.attention),
        units=sum(group.width for group in layout.feed_forward),
        parameters=measure.parameters(layout.model, dense),
        flops=dict(flops[1]),
        ideal=ideal,
        latency_ms=measure.median_ms(times[1]),
        speedup={shape: ratio.value for shape, ratio in faster.items()},
        within={shape: _interval(ratio) for shape, ratio in faster.items()},
        efficiency={shape: ratio.value / ideal[shape] for shape, ratio in faster.items()},
    )


def _interval(ratio: Middle) -> list[float]:
    assert ratio.low is not None, f"{INTERVAL_ROUNDS} rounds have one"
    assert ratio.high is not None, f"{INTERVAL_ROUNDS} rounds have one"
    return [ratio.low, ratio.high]


def _weights(model: nn.Module, members: Iterable[Member]) -> int:
    return sum(member.weight(model).numel() for member in members)
