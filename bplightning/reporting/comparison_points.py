"""The points of a comparison: from reports of runs to models, those of several seeds averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TypedDict

from bplightning.reporting.page import short_name
from bplightning.reporting.run_warnings import collapsed
from bplightning.reporting.schema import Report
from bplightning.reporting.table import fills_zeros


class Point(TypedDict):
    """One model: the compact one of a configuration, or a dense one; means over its runs, where it has several.

    ``score_spread`` is the standard deviation over the runs, `None` for a single one. ``latency_ms`` was measured in
    the runs themselves, each on a machine that may have been busier than in others. ``scaled_ms`` is computed, for the
    picture and for ``beaten``: the median time of the dense model over all runs, divided by the speed-up, so that runs
    with the same dense model are compared by their paired ratios.

    ``beaten`` says for each cost, ``latency_ms`` (by ``scaled_ms``) and ``bytes``, whether another model costs no more,
    scores no worse, and is better in one of both, so that this model is not Pareto-optimal. It is `None` where the cost
    was not measured, or not on one machine, and where the model has collapsed.
    """

    name: str
    runs: list[str]
    kind: str
    model: str
    strategy: str
    seeds: list[int]
    score: float
    score_spread: float | None
    density: float
    collapsed: bool
    latency_ms: float | None
    scaled_ms: float | None
    bytes: int | None
    speedup: float | None
    settled: bool
    beaten: dict[str, bool | None]


@dataclass(frozen=True)
class Measured:
    """How the runs of a comparison are read.

    Attributes:
        metric: The score.
        shape: Rows and tokens of the latency.
        common: Name and size of a dense model to its median milliseconds over the runs.
    """

    metric: str
    shape: str
    common: Mapping[tuple[str, int], float]


def dense_ms(reports: Sequence[Report], shape: str) -> dict[tuple[str, int], float]:
    """The median time of each dense model over the runs that were compared with it.

    Each run timed it along with its own compact model, on a machine that is busier at some times than at others. Only
    the ratio is reliable, so runs are compared by their ratios to one common time.

    Args:
        reports: The runs' reports.
        shape: Rows and tokens.
    """
    times: dict[tuple[str, int], list[float]] = {}
    for report in reports:
        if (report["latency_ms"]["dense"] or {}).get(shape) is not None:
            times.setdefault(_key(report), []).append((report["latency_ms"]["dense"] or {})[shape])
    return {key: median(values) for key, values in times.items()}


def compact_point(runs: Mapping[str, Report], how: Measured) -> Point:
    """The compact model of runs of one configuration.

    Args:
        runs: A run's name to its report.
        how: How they are read.
    """
    first, reports = next(iter(runs.values())), list(runs.values())
    scores = [float((report["metrics"]["compact"] or {})[how.metric] or 0.0) for report in reports]
    speedups = [ratio for report in reports if (ratio := (report["speedup"] or {}).get(how.shape)) is not None]
    speedup = fmean(speedups) if len(speedups) == len(reports) else None
    own = fmean(report["latency_ms"]["compact"][how.shape] for report in reports)
    sizes = [size for report in reports if (size := report["bytes_on_disk"]["compact"]) is not None]
    density = fmean(map(_left, reports))
    intervals = [report["speedup_interval"].get(how.shape) for report in reports]
    return Point(
        name=_name(list(runs)),
        runs=list(runs),
        kind="compact",
        model=short_name(first["model"]),
        strategy=first["strategy"],
        seeds=_seeds(reports),
        score=fmean(scores),
        score_spread=stdev(scores) if len(scores) > 1 else None,
        density=density,
        collapsed=any(map(collapsed, reports)),
        latency_ms=own,
        scaled_ms=how.common[_key(first)] / speedup if speedup is not None and _key(first) in how.common else own,
        bytes=round(fmean(sizes)) if len(sizes) == len(reports) else None,
        speedup=speedup,
        settled=all(interval is None or interval["settled"] for interval in intervals),
        beaten={},
    )


def dense_point(runs: Mapping[str, Report], how: Measured) -> Point:
    """The dense model that runs were compared with; all have one, of the same name and size.

    Args:
        runs: A run's name to its report.
        how: How they are read.
    """
    first, reports = next(iter(runs.values())), list(runs.values())
    found = {(report["seed"], score_of_dense(report, how.metric)) for report in reports}
    scores = [score for _, score in found if score is not None]
    scores = scores[:1] if len(set(scores)) == 1 else scores  # one dense model that several runs share
    return Point(
        name=f"dense {short_name(first['model'])}",
        runs=list(runs),
        kind="dense",
        model=short_name(first["model"]),
        strategy="dense",
        seeds=_seeds(reports),
        score=fmean(scores),
        score_spread=stdev(scores) if len(scores) > 1 else None,
        density=1.0,
        collapsed=False,
        latency_ms=how.common.get(_key(first)),
        scaled_ms=how.common.get(_key(first)),
        bytes=first["bytes_on_disk"]["dense"],
        speedup=1.0 if _key(first) in how.common else None,
        settled=True,
        beaten={},
    )


def score_of_dense(report: Report, metric: str) -> float | None:
    """The dense model's score, if the run has one.

    Args:
        report: The run's report.
        metric: The score.
    """
    return (report["metrics"]["dense"] or {}).get(metric)


def _name(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{runs[0]} and {len(runs) - 1} more"


def _seeds(reports: Sequence[Report]) -> list[int]:
    return sorted({report["seed"] for report in reports if report["seed"] is not None})


def _key(report: Report) -> tuple[str, int]:
    return short_name(report["model"]), report["parameters"]["dense"]["all"]


def _left(report: Report) -> float:
    """Fraction of the linear weights that are not zero; after a refill that fills zeros, all that are stored."""
    if not fills_zeros(report):
        return report["density"]["encoder_linear"]
    return report["parameters"]["compact"]["encoder_linear"] / report["parameters"]["dense"]["encoder_linear"]
