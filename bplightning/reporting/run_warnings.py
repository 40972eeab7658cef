"""What a report warns about: hardly anything left, a score that is gone, a late correction, a vocabulary too small.

Nothing is refused for it: a run took hours, and its numbers say what happened. But a speed-up alone would hide it.
"""

from __future__ import annotations

from collections.abc import Iterator

from bplightning.reporting.schema import MUCH_LOST, HeadLayer, Report, UnitLayer, Warned
from bplightning.reporting.table import query_heads

LEAST_LEFT = 0.05
"""Fraction of the layers' linear weights below which hardly anything is left; the papers stop at 3 to 8 per cent."""

FAR = 0.2
"""Relative change by the last correction of the masks above which weights had no time to learn with the final ones."""

LATE, CORPUS = "late_correction", "other_corpus"
"""The kinds of warning that say nothing of a collapse."""

KINDS = {"self": "self-attention", "cross": "cross-attention", "feed_forward": "the feed-forward layers"}


def warnings_of(report: Report, *, alike: int | None) -> list[Warned]:
    """The warnings of a run, the worst first; none for most.

    Args:
        report: Its report, but for the warnings.
        alike: How many validation examples were looked at, where the compact model gives all of them the same answer;
            `None` where it does not.
    """
    return [
        *([] if alike is None else [_constant(alike)]),
        *_score(report),
        *_left(report),
        *_stacks(report),
        *_correction(report),
        *_vocabulary(report),
    ]


def collapsed(report: Report) -> bool:
    """Whether a warning says that the network, or its score, is all but gone.

    Args:
        report: The whole report.
    """
    return any(warning["kind"] not in (LATE, CORPUS) for warning in report["warnings"])


def _vocabulary(report: Report) -> Iterator[Warned]:
    """A smaller vocabulary that lacks much of what the model reads."""
    lost = report["vocabulary"].get("lost", 0.0)
    if lost > MUCH_LOST:
        yield Warned(
            kind=CORPUS,
            message=f"The smaller vocabulary lacks {100 * lost:.1f} % of the validation set's tokens, which are read "
            "in smaller pieces or as unknown. Give --vocabulary a corpus of the text that the model will read.",
        )


def _constant(examples: int) -> Warned:
    return Warned(
        kind="constant_answer",
        message=f"The compact model gives the same answer to all of the {examples} validation examples looked at: it "
        "has learned nothing, or lost it. Keep more, or train longer.",
    )


def _score(report: Report) -> Iterator[Warned]:
    """A score that is less than half as good as the dense model's."""
    monitor, dense, compact = report["monitor"], report["metrics"]["dense"], report["metrics"]["compact"]
    if monitor is None:
        return
    was, now = ((of or {}).get(monitor["metric"]) for of in (dense, compact))
    if was is None or now is None or was <= 0:
        return
    if (now < was / 2) if monitor["mode"] == "max" else (now > 2 * was):
        yield Warned(
            kind="score_lost",
            message=f"{monitor['metric']} is {now:.2f} where the dense model has {was:.2f}: less than half as good. "
            "Keep more, or train longer.",
        )


def _left(report: Report) -> Iterator[Warned]:
    left = report["density"]["encoder_linear"]
    if left < LEAST_LEFT:
        unknown = "" if report["metrics"]["dense"] else " What the score lost is not known without a dense baseline."
        yield Warned(
            kind="nearly_empty",
            message=f"Only {100 * left:.1f} % of the linear weights is left, less than {100 * LEAST_LEFT:.0f} %: the "
            f"model may have collapsed.{unknown} Ask for more to be kept, or train longer.",
        )


def _stacks(report: Report) -> Iterator[Warned]:
    """Stacks without any head of one kind of attention, or without any unit."""
    for what, layers in (("heads", query_heads(report["heads"])["by_layer"]), ("units", report["units"]["by_layer"])):
        for (stack, kind), (kept, total) in _counts(layers).items():
            if total and not kept:
                yield Warned(
                    kind="empty_stack",
                    message=f"All {total:,} {what} of {KINDS.get(kind, kind)} in the {stack} are gone. Where the score "
                    "fell with them, keep more, prune later, or give that role less of the penalty.",
                )


def _counts(layers: list[HeadLayer] | list[UnitLayer]) -> dict[tuple[str, str], tuple[int, int]]:
    """Stack and kind of sub-layer to what is kept there and what there was; names are as ``encoder.3.self``."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for layer in layers:
        stack, _, kind = (*layer["name"].split("."), "", "")[:3]
        kept, total = counts.get((stack, kind), (0, 0))
        counts[stack, kind] = kept + layer["kept"], total + layer["total"]
    return counts


def _correction(report: Report) -> Iterator[Warned]:
    """A target that training itself came nowhere near."""
    snap = report["snap"]
    if snap is None or not snap["after"] or abs(snap["before"] / snap["after"] - 1) <= FAR:
        return
    kind = snap["kind"].replace("_", " ")
    yield Warned(
        kind=LATE,
        message=f"Training with the penalty brought the {kind} to {snap['before']:.3g}; the last correction of the "
        f"masks then moved it to {snap['after']:.3g} at once, where {snap['target']:.3g} was asked for. Weights had no "
        "time to learn on the way there: train longer.",
    )
