"""Comparing runs: score against measured latency and size, and which models are Pareto-optimal.

These are pure functions of reports; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from bplightning.errors import UserError
from bplightning.reporting.comparison_points import (
    Measured,
    Point,
    compact_point,
    dense_ms,
    dense_point,
    score_of_dense,
)
from bplightning.reporting.run_options import of_configuration
from bplightning.reporting.schema import Report

SCHEMA_VERSION = 3
"""Raised by one whenever a key of a comparison is renamed, removed, added or changes its meaning or unit."""

Cost = Literal["latency_ms", "bytes"]
COSTS: tuple[Cost, Cost] = ("latency_ms", "bytes")
"""The costs that a score is compared with."""

OF_DENSE = ("task", "model", "trainer", "baseline")
"""Sections of the options that a dense baseline depends on."""

NOT_GIVEN = "\N{EN DASH}"


class Comparison(TypedDict):
    """The whole document."""

    schema_version: int
    task: str
    data: dict[str, Any] | None
    metric: str
    mode: str
    shape: str
    machines: int
    points: list[Point]
    options: dict[str, list[str]]


def compare(
    reports: Mapping[str, Report],
    options: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    *,
    metric: str | None = None,
    shape: str | None = None,
    each: bool = False,
) -> Comparison:
    """Compare runs.

    Args:
        reports: A run's name to its report.
        options: A run's name to its options, as `bplightning.reporting.run_options.read_options` gives them: runs that
            differ only in their seed are one point.
        metric: The score; by default the metric by which the task chooses the best model.
        shape: Rows and tokens, ``"BxL"``, of the latency; by default 8x128, or the last that all have.
        each: Whether each run is a point of its own.

    Raises:
        UserError: Scores are of different tasks or validation sets, or there is no such metric or shape.
    """
    first = next(iter(reports.values()))
    _require_comparable(reports)
    monitor = first["monitor"]
    name = metric or (monitor["metric"] if monitor is not None else None)
    if name is None:
        raise UserError(f"the reports do not say which metric is the score: give --metric, one of {_metrics(first)}.")
    for run, report in reports.items():
        if (report["metrics"]["compact"] or {}).get(name) is None:
            raise UserError(f"{run!r} has no metric {name!r}: give --metric, one of {_metrics(report)}.")
    shape = _shape(reports, shape)
    machines = len({tuple(report["machine"].items()) for report in reports.values()})
    how = Measured(name, shape, dense_ms(list(reports.values()), shape))
    configurations = _configurations(reports, options, each=each)
    points = [compact_point(runs, how) for runs in configurations]
    points += [dense_point(runs, how) for runs in _dense_models(reports, options, name, each=each)]
    mode = monitor["mode"] if monitor is not None and name == monitor["metric"] else "max"
    for cost in COSTS:
        known = cost != "latency_ms" or machines == 1
        for point, beaten in zip(points, dominated(points, cost, least_is_best=mode == "min"), strict=True):
            point["beaten"][cost] = beaten if known else None
    return Comparison(
        schema_version=SCHEMA_VERSION,
        task=first["task"],
        data=first["data"],
        metric=name,
        mode=mode,
        shape=shape,
        machines=machines,
        points=points,
        options=differences(configurations, options),
    )


def cost_of(point: Point, cost: Cost) -> float | None:
    """What points are compared by: of latencies those that are comparable.

    Args:
        point: A point.
        cost: The cost.
    """
    return point["scaled_ms"] if cost == "latency_ms" else point["bytes"]


def dominated(points: Sequence[Point], cost: Cost, *, least_is_best: bool = False) -> list[bool | None]:
    """For each point, whether another costs no more and scores no worse, and is better in one of both.

    Args:
        points: The points; one whose cost is `None`, or that has collapsed, is ignored, and gets `None`.
        cost: The cost that scores are compared with.
        least_is_best: Whether a lower score is better.
    """
    places = [
        (None if point["collapsed"] else cost_of(point, cost), -point["score"] if least_is_best else point["score"])
        for point in points
    ]
    found: list[bool | None] = []
    for costs, score in places:
        beaters = [
            other
            for other, better in places
            if other is not None and costs is not None and other <= costs and better >= score
            if (other, better) != (costs, score)
        ]
        found.append(None if costs is None else bool(beaters))
    return found


def _configurations(
    reports: Mapping[str, Report], options: Mapping[str, Mapping[str, str]], *, each: bool
) -> list[dict[str, Report]]:
    """The runs, those of one configuration together; a run whose options are not known stays alone."""
    found: dict[Any, dict[str, Report]] = {}
    for run, report in reports.items():
        own = of_configuration(options.get(run, {}))
        alone = each or not own
        key = run if alone else (report["model"], report["strategy"], *sorted(own.items()))
        found.setdefault(key, {})[run] = report
    return list(found.values())


def _dense_models(
    reports: Mapping[str, Report], options: Mapping[str, Mapping[str, str]], metric: str, *, each: bool
) -> list[dict[str, Report]]:
    """The runs by the dense model that they were compared with; one that several runs share comes once.

    Dense models of several seeds are one where all options are the same but the seed and those of the pruning.
    """
    found: dict[Any, dict[str, Report]] = {}
    for run, report in reports.items():
        if (score := score_of_dense(report, metric)) is None:
            continue
        own = of_configuration(options.get(run, {}))
        training = sorted((name, value) for name, value in own.items() if name.partition(".")[0] in OF_DENSE)
        alone = each or not own
        size = report["parameters"]["dense"]["all"]
        key = (report["model"], size, *((score, report["bytes_on_disk"]["dense"]) if alone else training))
        found.setdefault(key, {})[run] = report
    return list(found.values())


def differences(
    configurations: Sequence[Mapping[str, Report]], options: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """The options in which configurations differ: option to its value in each.

    Args:
        configurations: The runs of each.
        options: A run's name to its options.
    """
    own = [of_configuration(options.get(next(iter(runs)), {})) for runs in configurations]
    names = dict.fromkeys(name for of in own for name in of)
    values = {name: [of.get(name, NOT_GIVEN) for of in own] for name in names}
    return {name: of for name, of in values.items() if len(set(of)) > 1}


def _require_comparable(reports: Mapping[str, Report]) -> None:
    """Refuse scores of different tasks, data or evaluation settings."""
    (first, reference), *others = reports.items()
    for run, report in others:
        for key in ("task", "data", "evaluation"):
            here, there = report[key], reference[key]
            if here != there:
                raise UserError(
                    f"scores of {run!r} and {first!r} cannot be compared: {key} is {here!r} in one, {there!r} in the "
                    "other. Compare runs of one task on one validation set, with the same evaluation settings."
                )


def _shape(reports: Mapping[str, Report], shape: str | None) -> str:
    """The shape asked for, else 8x128, else the last that all runs have."""
    common = [
        name
        for name in next(iter(reports.values()))["latency_ms"]["compact"]
        if all(name in report["latency_ms"]["compact"] for report in reports.values())
    ]
    if shape is None and common:
        return "8x128" if "8x128" in common else common[-1]
    if shape not in common:
        remedy = f"give --shape, one of {', '.join(common)}" if common else "compare runs that have one in common"
        raise UserError(f"the runs were not all timed at {shape or 'one shape'}: {remedy}.")
    return shape


def _metrics(report: Report) -> str:
    return ", ".join(report["metrics"]["compact"] or {}) or "none"
