"""The report: what pruning cost and what it gave, as JSON first.

`build_report` is a pure function of measured values, and `render` draws its table from the JSON alone, so that plots, a
page or a model card can be drawn later from the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from bplightning.errors import UserError
from bplightning.io.files import write_whole
from bplightning.measuring.records import Machine, ParameterCount
from bplightning.reporting.schema import (
    SCHEMA_VERSION,
    Aligned,
    Bytes,
    Density,
    Equivalence,
    FamilyMember,
    Flops,
    HeadLayer,
    Heads,
    LatencyMs,
    LogitDifference,
    Metrics,
    Monitor,
    Numbers,
    Parameters,
    Pattern,
    Quantized,
    Refilled,
    Report,
    Snap,
    Stream,
    UnitLayer,
    Units,
    Vocabulary,
    validate_report,
)
from bplightning.reporting.table import render

__all__ = [
    "SCHEMA_VERSION",
    "LayerKept",
    "Report",
    "build_report",
    "load_report",
    "render",
    "save_report",
    "validate_report",
]

LayerKept = tuple[str, Sequence[int], int]
"""A layer's name, the indices kept of it (heads or units), and how many there were."""


def build_report(
    *,
    task: str,
    strategy: str,
    model: str,
    metrics: Mapping[str, Mapping[str, SupportsFloat] | None],
    evaluation: Mapping[str, Any] | None,
    density_by_role: Mapping[str, SupportsFloat],
    heads_by_layer: Sequence[LayerKept],
    units_by_layer: Sequence[LayerKept],
    parameters: Mapping[str, ParameterCount],
    vocabulary: Vocabulary,
    dtype: str,
    bytes_on_disk: Mapping[str, int | None],
    flops: Mapping[str, int | None],
    flops_shape: str,
    latency_ms: Mapping[str, Mapping[str, float] | None],
    speedup: Mapping[str, float] | None,
    equivalence: Mapping[str, SupportsFloat | None],
    equivalence_relative: Mapping[str, SupportsFloat | None],
    world_size: int,
    mask_hashes: Sequence[str],
    seed: int | None,
    command: str,
    versions: Mapping[str, str],
    machine: Machine,
    date: str,
    monitor: Monitor | None = None,
    data: Mapping[str, Any] | None = None,
    stream: Stream | None = None,
    skipped: Sequence[str] = (),
    patterns: Sequence[Pattern] = (),
    distillation: Mapping[str, Any] | None = None,
    simplification: Mapping[str, Any] | None = None,
    alignment: Aligned | None = None,
    refill: Refilled | None = None,
    snap: Snap | None = None,
    quantized: Quantized | None = None,
    family: Sequence[FamilyMember] = (),
) -> Report:
    """The report from measured values alone; what is absent from a mapping over models counts as not measured.

    Args:
        task: The task's name.
        strategy: The pruning strategy's name.
        model: What the run started from, a hub name or a folder.
        metrics: ``dense``, ``masked``, ``compact`` to metric name to value.
        evaluation: What the task says of how it measured them, as JSON; `None` where it measured nothing.
        density_by_role: Role to fraction of its weights kept.
        heads_by_layer: For each attention sub-layer its name, the indices of kept heads, and how many there were.
        units_by_layer: For each feed-forward sub-layer its name, the indices of kept units, and how many there were.
        parameters: ``dense``, ``masked`` (non-zero ones), ``compact`` to ``encoder_linear`` and ``all``, counts. The
            dense counts are known without a baseline: a masked model has the dense shapes.
        vocabulary: Tokens kept in the compact model, and those of the dense one.
        dtype: Precision the compact model is saved in, for example ``float32``.
        bytes_on_disk: ``dense``, ``compact`` to the size of the weights' files, bytes.
        flops: ``dense``, ``compact`` to operations of one forward pass at `flops_shape`.
        flops_shape: Rows and tokens of that pass, ``"BxL"``.
        latency_ms: ``dense``, ``compact`` to ``"BxL"``, or ``"BxL+N"`` where `N` tokens were generated, to median
            milliseconds.
        speedup: The same to the median of paired dense/compact time ratios; `None` without a dense measurement.
        equivalence: ``masked_compact``, ``compact_reloaded`` to the largest absolute logit difference.
        equivalence_relative: The same, divided by the largest absolute logit.
        world_size: Processes that trained.
        mask_hashes: Of each of them, a hash of what its masks kept and of their scores.
        seed: The run's seed, `None` where it was not fixed.
        command: The command line that repeats the run.
        versions: Package to version, see `versions`.
        machine: See `bplightning.measuring.measure.machine`.
        date: ISO 8601 in UTC, see `now`.
        monitor: The metric that says which model is better.
        data: What the task says of the data it was measured on, as JSON; `None` where it says nothing.
        stream: Dimensions of the residual stream kept, and how many there were; `None` where its width stays.
        skipped: Names of the sub-layers that are skipped, and their norm with them.
        patterns: What is left inside the heads, see `bplightning.reporting.patterns.head_patterns`.
        distillation: The teacher and what was learned from it; `None` without one.
        simplification: What of the network became simpler; `None` where nothing did.
        alignment: Which removed units were put back; `None` where widths are as pruning left them.
        refill: How the compact model was fine-tuned; `None` where it was not.
        snap: What the last correction of the masks did; `None` where nothing was steered.
        quantized: What the compact model became in 8 bits; `None` where it was not quantized.
        family: Other models that the run made.

    Returns:
        The document, ready for `save_report` and `render`.
    """
    full, masked = parameters["dense"], parameters["masked"]
    heads = [
        HeadLayer(name=n, kept=len(kept), total=t, indices=[int(i) for i in kept]) for n, kept, t in heads_by_layer
    ]
    units = [UnitLayer(name=n, kept=len(kept), total=t) for n, kept, t in units_by_layer]
    dense_latency = latency_ms.get("dense")
    return Report(
        schema_version=SCHEMA_VERSION,
        date=date,
        task=task,
        strategy=strategy,
        model=model,
        metrics=Metrics(
            dense=_numbers(metrics.get("dense")),
            masked=_numbers(metrics.get("masked")),
            compact=_numbers(metrics.get("compact")),
        ),
        monitor=monitor,
        data=None if data is None else dict(data),
        evaluation=None if evaluation is None else dict(evaluation),
        distillation=None if distillation is None else dict(distillation),
        simplification=None if simplification is None else dict(simplification),
        alignment=None if alignment is None else _finite(alignment),
        refill=refill,
        snap=snap,
        quantized=quantized,
        family=[{**member, "metrics": _numbers(member["metrics"]) or {}} for member in family],
        density=Density(
            encoder_linear=masked["encoder_linear"] / full["encoder_linear"],
            all_parameters=masked["all"] / full["all"],
            by_role={role: float(fraction) for role, fraction in density_by_role.items()},
        ),
        heads=Heads(kept=sum(h["kept"] for h in heads), total=sum(h["total"] for h in heads), by_layer=heads),
        units=Units(kept=sum(u["kept"] for u in units), total=sum(u["total"] for u in units), by_layer=units),
        stream=stream,
        skipped=list(skipped),
        patterns=list(patterns),
        parameters=Parameters(dense=_count(full), masked=_count(masked), compact=_count(parameters["compact"])),
        vocabulary=vocabulary,
        dtype=dtype,
        bytes_on_disk=Bytes(dense=bytes_on_disk.get("dense"), compact=bytes_on_disk.get("compact")),
        flops=Flops(dense=flops.get("dense"), compact=flops.get("compact"), shape=flops_shape),
        latency_ms=LatencyMs(
            dense=None if dense_latency is None else dict(dense_latency), compact=dict(latency_ms.get("compact") or {})
        ),
        speedup=None if speedup is None else dict(speedup),
        equivalence=Equivalence(
            masked_compact=_number(equivalence.get("masked_compact")),
            compact_reloaded=_number(equivalence.get("compact_reloaded")),
            relative=LogitDifference(
                masked_compact=_number(equivalence_relative.get("masked_compact")),
                compact_reloaded=_number(equivalence_relative.get("compact_reloaded")),
            ),
        ),
        world_size=world_size,
        mask_hashes=list(mask_hashes),
        seed=seed,
        command=command,
        versions=dict(versions),
        machine=machine,
    )


def save_report(report: Report, path: str | Path) -> None:
    """Write the report as JSON; a reader finds the whole of it or the file that was there before.

    Args:
        report: What `build_report` returned.
        path: The file, usually ``report.json``; its folder exists.
    """
    validate_report(report)
    write_whole(Path(path), json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load_report(path: str | Path) -> Report:
    """Read a report and check it.

    Args:
        path: A ``report.json``.

    Raises:
        UserError: The file is missing, is not JSON, or is not a report of this schema.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"report {str(path)!r} does not exist: a run writes it at its end, beside config.yaml; give that folder."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"report {str(path)!r} is not JSON ({error}): build it again.") from error
    return validate_report(document, name=str(path))


def _number(value: SupportsFloat | None) -> float | None:
    """A plain float (also from a tensor); JSON holds neither NaN nor infinity."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _numbers(values: Mapping[str, SupportsFloat | None] | None) -> Numbers | None:
    return None if values is None else {name: _number(value) for name, value in values.items()}


def _finite(aligned: Aligned) -> Aligned:
    return {**aligned, "metrics_before": _numbers(aligned["metrics_before"])}


def _count(count: ParameterCount) -> ParameterCount:
    return ParameterCount(encoder_linear=int(count["encoder_linear"]), all=int(count["all"]))
