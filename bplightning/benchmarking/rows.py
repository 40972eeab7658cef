"""Turning the times of one shape into the rows of a benchmark.

Legend: `B` rows of a batch, `L` tokens of each row, `N` new tokens of each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bplightning.benchmarking.schema import LatencyQuantiles, Row, Work
from bplightning.measuring.measure import shape_name
from bplightning.measuring.records import Speedup
from bplightning.measuring.timing import STEADY_ROUNDS, Times, middle, speedup_of

NO_TIME = 1e-6
"""Smallest difference of two measured times, milliseconds."""

Variant = tuple[str, str]
"""Name of a model, ``"dense"`` or ``"compact"``, and a backend."""

TimesByWork = dict[Work, dict[Variant, Times]]


def by_work(times: Mapping[tuple[Work, Variant], Times], *, new_tokens: int) -> TimesByWork:
    """The times by kind of work; the time of each further token is that of a generation minus its first, per token.

    Args:
        times: The times.
        new_tokens: `N`.
    """
    found: TimesByWork = {}
    for (work, variant), each in times.items():
        found.setdefault(work, {})[variant] = each
    if "generation" in found:
        found["decoding"] = {
            variant: _rest(each, found["first_token"][variant], new_tokens - 1)
            for variant, each in found["generation"].items()
        }
    return found


def settled(works: TimesByWork, *, reference: str, tolerance: float) -> bool:
    """Whether the results are precise enough: the ratios, or the time of a single variant.

    Args:
        works: Times so far.
        reference: The model that the others are compared with.
        tolerance: Largest half of a confidence interval, as a fraction of the value.
    """
    for times in works.values():
        found = [_ratios(times, variant, reference, tolerance) for variant in times]
        ratios = [ratio for pair in found for ratio in pair if ratio is not None]
        alone = next(iter(times.values())).rounds_ms
        if not (all(ratio["settled"] for ratio in ratios) if ratios else middle(alone).within(tolerance)):
            return False
        if len(alone) < STEADY_ROUNDS:
            return False
    return True


def rows(
    works: TimesByWork,
    *,
    flops: Mapping[str, Mapping[Work, int]],
    shape: tuple[int, int],
    new_tokens: int,
    reference: str,
    tolerance: float,
) -> Iterator[Row]:
    """The rows of one shape.

    Args:
        works: All times.
        flops: Model to kind of work to floating-point operations of one pass.
        shape: `B` and `L`.
        new_tokens: `N`.
        reference: The model that the others are compared with.
        tolerance: As in `settled`.
    """
    batch_size, length = shape
    for work, times in works.items():
        tokens = {"generation": new_tokens, "decoding": 1}.get(work, length)
        for (model, backend), each in times.items():
            same, eager = _ratios(times, (model, backend), reference, tolerance)
            ideal = flops[reference][work] / flops[model][work] if same and flops[model][work] else None
            yield Row(
                work=work,
                shape=shape_name(*shape),
                batch_size=batch_size,
                length=length,
                new_tokens=None if work == "forward" else 1 if work == "first_token" else new_tokens,
                model=model,
                backend=backend,
                latency_ms=LatencyQuantiles(median=each.median_ms, p90=each.p90_ms),
                rounds=len(each.rounds_ms),
                rows_per_second=1000 * batch_size / each.median_ms,
                tokens_per_second=1000 * batch_size * tokens / each.median_ms,
                flops=flops[model][work],
                ideal_speedup=ideal,
                efficiency=same["ratio"] / ideal if same and ideal else None,
                speedup=same,
                speedup_over_eager=eager,
            )


def _ratios(
    times: Mapping[Variant, Times], variant: Variant, reference: str, tolerance: float
) -> tuple[Speedup | None, Speedup | None]:
    """The ratio to the reference in the same backend and in eager; `None` to itself."""
    model, _ = variant
    same, eager = (reference, variant[1]), (reference, "eager")
    compared = model != reference and same in times
    return (
        speedup_of(times[same], times[variant], tolerance=tolerance) if compared else None,
        None if variant == eager else speedup_of(times[eager], times[variant], tolerance=tolerance),
    )


def _rest(whole: Times, first: Times, parts: int) -> Times:
    """The difference in each round, per part; passes of two calls are not paired, so rounds replace them."""
    pairs = zip(whole.rounds_ms, first.rounds_ms, strict=True)
    left = tuple(max(each - before, NO_TIME) / parts for each, before in pairs)
    return Times(left, left)
