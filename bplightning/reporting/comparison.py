"""Comparing runs: score against measured latency and size, and which models are Pareto-optimal.

These are pure functions of reports; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal, TypedDict

from bplightning.errors import UserError
from bplightning.reporting.page import short_name
from bplightning.reporting.schema import Report
from bplightning.reporting.table import fills_zeros

SCHEMA_VERSION = 2
"""Raised by one whenever a key of a comparison is renamed, removed, added or changes its meaning or unit."""

COSTS: tuple[Literal["latency_ms"], Literal["bytes"]] = ("latency_ms", "bytes")
"""The costs that a score is compared with."""


class Point(TypedDict):
    """One model: the compact one of a run, or a dense one.

    ``beaten`` says for each of `COSTS` whether another model costs no more, scores no worse, and is better in one of
    both, so that this model is not Pareto-optimal. It is `None` where the cost was not measured, or not on one machine.
    For runs with the same dense model, ``latency_ms`` is that model's median over the runs divided by the run's
    speed-up.
    """

    run: str
    kind: str
    model: str
    strategy: str
    seed: int | None
    score: float
    density: float
    latency_ms: float | None
    bytes: int | None
    speedup: float | None
    beaten: dict[str, bool | None]


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


def compare(reports: Mapping[str, Report], *, metric: str | None = None, shape: str | None = None) -> Comparison:
    """Compare runs.

    Args:
        reports: A run's name to its report.
        metric: The score; by default the metric by which the task chooses the best model.
        shape: Rows and tokens, ``"BxL"``, of the latency; by default 8x128, or the last that all have.

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
    common = _dense_ms(list(reports.values()), shape)
    points = [_compact(run, report, name, shape, common) for run, report in reports.items()]
    for point in (_dense(run, report, name, shape, common) for run, report in reports.items()):
        same = ("model", "score", "bytes")  # a dense model that several runs share is listed once
        if point is not None and not any(
            other["kind"] == "dense" and all(other[key] == point[key] for key in same)  # type: ignore[literal-required]
            for other in points
        ):
            points.append(point)
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
    )


def dominated(
    points: Sequence[Point], cost: Literal["latency_ms", "bytes"], *, least_is_best: bool = False
) -> list[bool | None]:
    """For each point, whether another costs no more and scores no worse, and is better in one of both.

    Args:
        points: The points; one whose cost is `None` is ignored, and gets `None`.
        cost: The cost that scores are compared with.
        least_is_best: Whether a lower score is better.
    """
    places = [(point[cost], -point["score"] if least_is_best else point["score"]) for point in points]
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


DenseMs = Mapping[tuple[str, int], float]
"""Name and size of a dense model to its milliseconds."""


def _dense_ms(reports: Sequence[Report], shape: str) -> DenseMs:
    """The median time of each dense model over the runs that were compared with it.

    Each run timed it along with its own compact model, on a machine that is busier at some times than at others. Only
    the ratio is reliable, so runs are compared by their ratios to one common time.
    """
    times: dict[tuple[str, int], list[float]] = {}
    for report in reports:
        if (report["latency_ms"]["dense"] or {}).get(shape) is not None:
            times.setdefault(_key(report), []).append((report["latency_ms"]["dense"] or {})[shape])
    return {key: median(values) for key, values in times.items()}


def _key(report: Report) -> tuple[str, int]:
    return short_name(report["model"]), report["parameters"]["dense"]["all"]


def _compact(run: str, report: Report, metric: str, shape: str, common: DenseMs) -> Point:
    speedup = (report["speedup"] or {}).get(shape)
    own = report["latency_ms"]["compact"].get(shape)
    return Point(
        run=run,
        kind="compact",
        model=short_name(report["model"]),
        strategy=report["strategy"],
        seed=report["seed"],
        score=float((report["metrics"]["compact"] or {})[metric] or 0.0),
        density=_left(report),
        latency_ms=common[_key(report)] / speedup if speedup is not None and _key(report) in common else own,
        bytes=report["bytes_on_disk"]["compact"],
        speedup=speedup,
        beaten={},
    )


def _left(report: Report) -> float:
    """Fraction of the linear weights that are not zero; after a refill that fills zeros, all that are stored."""
    if not fills_zeros(report):
        return report["density"]["encoder_linear"]
    return report["parameters"]["compact"]["encoder_linear"] / report["parameters"]["dense"]["encoder_linear"]


def _dense(run: str, report: Report, metric: str, shape: str, common: DenseMs) -> Point | None:
    """The dense model that a run was compared with, if any."""
    score = (report["metrics"]["dense"] or {}).get(metric)
    if score is None:
        return None
    return Point(
        run=run,
        kind="dense",
        model=short_name(report["model"]),
        strategy="dense",
        seed=report["seed"],
        score=score,
        density=1.0,
        latency_ms=common.get(_key(report)),
        bytes=report["bytes_on_disk"]["dense"],
        speedup=None,
        beaten={},
    )


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
