"""Figures of a run's curves: density by role, the validation score, and histograms of learned scores."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bplightning.masks.granularity import ROLES
from bplightning.reporting.charts import Points, Ridge, lines, ridges
from bplightning.reporting.rendering import Figure
from bplightning.reporting.schema import Report
from bplightning.reporting.score_history import SCORES_FILE, Scores, read_scores

METRICS_FILE = "metrics.csv"
DRAWN = 300
"""Most points of a line."""

SHOWN = 12
"""Most rows of a table, and most histograms of a picture."""

T = TypeVar("T")

Curves = dict[str, list[tuple[float, float]]]
"""Column to its steps and values, ascending by step."""


def read_curves(file: Path) -> Curves:
    """The columns of a ``metrics.csv``; for a step that was trained twice, the later value.

    Args:
        file: The file; a missing one has no columns.
    """
    found: dict[str, dict[float, float]] = {}
    if file.is_file():
        with file.open(newline="", encoding="utf-8", errors="replace") as text:
            for row in csv.DictReader(text):
                step = _number(row.get("step"))
                for column, cell in row.items():
                    value = _number(cell)
                    if step is not None and value is not None and column not in (None, "step"):
                        found.setdefault(column, {})[step] = value
    return {column: sorted(values.items()) for column, values in found.items()}


def curves_of(run: Path, report: Report) -> list[Figure]:
    """The figures of a run; none where its files are missing.

    Args:
        run: Folder with ``metrics.csv`` and ``scores.jsonl``.
        report: The run's report.
    """
    curves = read_curves(run / METRICS_FILE)
    figures = [*_density(curves), *_score(curves, report), *_losses(curves), *_learning_rate(curves)]
    scores = thinned(read_scores(run / SCORES_FILE))
    for role in ROLES:
        if any(role in line["roles"] for line in scores):
            figures.append(_histograms(role, scores))
    return figures


def thinned(items: Sequence[T], most: int = SHOWN) -> list[T]:
    """At most this many of the items, evenly spread, with the first and the last.

    >>> thinned(range(100), 4)
    [0, 33, 66, 99]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def role_words(role: str) -> str:
    """A role in words.

    >>> role_words("feed_forward")
    'feed-forward'
    """
    return role.replace("feed_forward", "feed-forward").replace("_", " ")


def _density(curves: Curves) -> Iterator[Figure]:
    names = [name for name in (*ROLES, "total") if f"density/{name}" in curves]
    if not names:
        return
    series = {name: [(step, 100 * value) for step, value in curves[f"density/{name}"]] for name in names}
    words = "; ".join(f"{role_words(name)} from {_from_to(points)}" for name, points in series.items())
    drawn = lines(
        "density",
        "Density over training by role",
        f"Percentage of weights that the masks keep. {words}.",
        [(name, thinned(points, DRAWN)) for name, points in series.items()],
        bounds=(0.0, 100.0),
        unit=" %",
    )
    steps = thinned(series[names[-1]])
    by_step = {name: dict(points) for name, points in series.items()}
    rows = [
        (f"{step:,g}", *(f"{by_step[name][step]:.1f} %" if step in by_step[name] else "" for name in names))
        for step, _ in steps
    ]
    yield Figure(
        "Density",
        drawn,
        note="Fraction of the weights that the masks keep during training.",
        legend=[(name, f"{role_words(name)} {points[-1][1]:.1f} %") for name, points in series.items()],
        heads=["step", *map(role_words, names)],
        rows=rows,
    )


def _score(curves: Curves, report: Report) -> Iterator[Figure]:
    monitor = report["monitor"]
    points = curves.get(f"val_{monitor['metric']}", []) if monitor is not None else []
    if monitor is None or not points:
        return
    metric, dense = monitor["metric"], (report["metrics"]["dense"] or {}).get(monitor["metric"])
    series: list[tuple[str, Points]] = [("score", thinned(points, DRAWN))]
    values = [value for _, value in points]
    if dense is not None:
        series.insert(0, ("total", [(0, dense), (points[-1][0], dense)]))
        values.append(dense)
    room = 0.08 * (max(values) - min(values)) or 1.0
    drawn = lines(
        "score",
        f"{metric} on the validation set over training",
        f"{metric} of the masked model from {_from_to(points, '.2f', '')}"
        + (f"; the dense model has {dense:.2f}." if dense is not None else "."),
        series,
        bounds=(min(values) - room, max(values) + room),
    )
    better = "higher" if monitor["mode"] == "max" else "lower"
    keys = [("score", f"masked {points[-1][1]:.2f}"), *([("total", f"dense {dense:.2f}")] if dense is not None else [])]
    rows = [(f"{step:,g}", f"{value:.2f}") for step, value in thinned(points)]
    yield Figure(
        f"Score: {metric}",
        drawn,
        note=f"The masked model on the validation set; {better} is better.",
        legend=keys,
        heads=["step", metric],
        rows=rows,
    )


LOSSES = {"task_loss": "attention", "teacher_loss": "feed_forward"}
"""Column of a loss to the class of its line. A strategy's penalty has another scale: it would flatten both."""

IN_WORDS = {"task_loss": "task", "teacher_loss": "teacher"}


def _losses(curves: Curves) -> Iterator[Figure]:
    """The task's loss, and where there is one the teacher's."""
    found = {name: curves[name] for name in LOSSES if curves.get(name)}
    if "task_loss" not in found:
        return
    values = [value for points in found.values() for _, value in points]
    words = [f"{IN_WORDS[name]} from {_from_to(points, '.3g', '')}" for name, points in found.items()]
    steps = sorted({step for points in found.values() for step, _ in points})
    at = {name: dict(points) for name, points in found.items()}
    yield Figure(
        "Training loss",
        lines(
            "loss",
            "Training loss over training",
            f"{'; '.join(words)}.",
            [(LOSSES[name], thinned(points, DRAWN)) for name, points in found.items()],
            bounds=(min(0.0, *values), 1.05 * max(values) or 1.0),
        ),
        note="Of single batches, so the lines jump.",
        legend=[(LOSSES[name], f"{IN_WORDS[name]} {points[-1][1]:.3g}") for name, points in found.items()],
        heads=["step", *(IN_WORDS[name] for name in found)],
        rows=[
            (f"{step:,g}", *(f"{at[name][step]:.3g}" if step in at[name] else "–" for name in found))
            for step in thinned(steps)
        ],
    )


def _learning_rate(curves: Curves) -> Iterator[Figure]:
    points = curves.get("learning_rate", [])
    if not points:
        return
    drawn = [(step, 1e6 * value) for step, value in points]
    highest = max(value for _, value in drawn)
    yield Figure(
        "Learning rate",
        lines(
            "learning-rate",
            "Learning rate of the weights over training",
            f"In millionths, {_from_to(drawn, '.3g', '')}; the highest is {highest:.3g}.",
            [("score", thinned(drawn, DRAWN))],
            bounds=(0.0, 1.05 * highest or 1.0),
        ),
        note="Of the weights, in millionths. Scores have a rate of their own.",
        legend=[("score", f"highest {highest / 1e6:.3g}")],
        heads=["step", "learning rate"],
        rows=[(f"{step:,g}", f"{value:.3g}") for step, value in thinned(points)],
    )


def _histograms(role: str, scores: Sequence[Scores]) -> Figure:
    lines_of = [(line["step"], line["roles"][role]) for line in scores if role in line["roles"]]
    rows = [Ridge(f"{step:,}", of["low"], of["high"], of["pruned"], of["kept"]) for step, of in lines_of]
    step, last = lines_of[-1]
    kept, pruned = sum(last["kept"]), sum(last["pruned"])
    words = (
        f"Histograms of the learned scores at {len(rows)} validations. At step {step} they lie between "
        f"{last['low']:.3g} and {last['high']:.3g}; {kept} are kept and {pruned} pruned."
    )
    cells = [
        (f"{step:,}", f"{of['low']:.3g}", f"{of['high']:.3g}", f"{sum(of['kept']):,}", f"{sum(of['pruned']):,}")
        for step, of in lines_of
    ]
    return Figure(
        f"Scores: {role_words(role)}",
        ridges(f"scores-{role}", f"Scores of {role_words(role)} over training", words, rows, kind=role, axis="score"),
        note="Learned scores of blocks, heads or units, step by step from top to bottom; each row has its own height.",
        legend=[(role, f"kept {kept:,}"), ("pruned", f"pruned {pruned:,}")],
        heads=["step", "lowest", "highest", "kept", "pruned"],
        rows=cells,
    )


def _from_to(points: Points, form: str = ".1f", unit: str = " per cent") -> str:
    (first, start), (last, end) = points[0], points[-1]
    return f"{start:{form}}{unit} at step {first:g} to {end:{form}}{unit} at step {last:g}"


def _number(cell: object) -> float | None:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
