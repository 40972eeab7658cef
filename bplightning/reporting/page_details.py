"""What the page shows below the charts: scores by class, some answers, and intervals."""

from __future__ import annotations

from collections.abc import Iterator

from bplightning.reporting.run_options import as_text
from bplightning.reporting.schema import Report

NONE = "–"
WIDEST = 12
"""Most classes that the table of confusion is drawn for."""


def by_class(report: Report) -> list[tuple[str, ...]]:
    """A row for each class; none where the task has no classes.

    Args:
        report: The report.
    """
    scores = [] if report["classes"] is None else report["classes"]["scores"]
    return [
        (
            of["name"],
            f"{of['examples']:,}",
            *(NONE if value is None else f"{value:.1f} %" for value in (of["precision"], of["recall"], of["f1"])),
        )
        for of in scores
    ]


def confusion(report: Report) -> list[tuple[str, ...]]:
    """The heads, and a row for each class; none where there is no such table, or it would be too wide to read.

    Args:
        report: The report.
    """
    classes = report["classes"]
    if classes is None or classes["confusion"] is None or not 1 < len(classes["scores"]) <= WIDEST:
        return []
    names = [of["name"] for of in classes["scores"]]
    rows = zip(names, classes["confusion"], strict=True)
    return [("", *names), *((name, *(f"{count:,}" for count in counts)) for name, counts in rows)]


def samples(report: Report) -> list[dict[str, str]]:
    """Each example with the models' answers, name to text.

    Args:
        report: The report.
    """
    found = []
    for sample in report["samples"]:
        shown = {name: as_text(value) for name, value in sample["example"].items()}
        answers = {"dense": sample["dense"], "compact": sample["compact"]}
        found.append(shown | {f"{name} model": as_text(of) for name, of in answers.items() if of is not None})
    return found


def intervals(report: Report) -> Iterator[str]:
    """A line with the confidence intervals of the scores, where there are any.

    Args:
        report: The report.
    """
    told = [
        f"{name} {metric} {low:.2f} to {high:.2f}"
        for name in ("dense", "compact")
        for metric, (low, high) in report["score_interval"].get(name, {}).items()
    ]
    if told:
        yield f"95 % confidence intervals, by bootstrap over the validation examples: {', '.join(told)}"
