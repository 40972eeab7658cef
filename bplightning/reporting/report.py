"""The report of a run, as JSON: scores, sizes, speed, and how they were measured.

`build_report` is a pure function of measured values. The table, the page and the model card are drawn from the JSON.
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
"""Name of a sub-layer, the indices of its heads or units that were kept, and their total."""


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
    """The report of measured values; a model that is missing from a mapping was not measured.

    Args:
        task: The task's name.
        strategy: The pruning strategy's name.
        model: The model that the run started from, a hub name or a folder.
        metrics: ``dense``, ``masked``, ``compact`` to metric name to value.
        evaluation: How the task measured them, as JSON; `None` where it measured nothing.
        density_by_role: Role to fraction of its weights kept.
        heads_by_layer: For each attention sub-layer its name, the indices of kept heads, and their total.
        units_by_layer: For each feed-forward sub-layer its name, the indices of kept units, and their total.
        parameters: ``dense``, ``masked`` (those not zero), ``compact`` to ``encoder_linear`` and ``all``, counts. The
            dense counts are known without a baseline: a masked model has the dense shapes.
        vocabulary: Tokens of the compact model, and of the dense one.
        dtype: Precision the compact model is saved in, for example ``float32``.
        bytes_on_disk: ``dense``, ``compact`` to the size of the files of weights, bytes.
        flops: ``dense``, ``compact`` to operations of one forward pass at `flops_shape`.
        flops_shape: Rows and tokens of that pass, ``"BxL"``.
        latency_ms: ``dense``, ``compact`` to ``"BxL"``, or ``"BxL+N"`` where `N` tokens were generated, to median
            milliseconds.
        speedup: The same to the median of paired dense/compact time ratios; `None` without a dense measurement.
        equivalence: ``masked_compact``, ``compact_reloaded`` to the largest absolute logit difference.
        equivalence_relative: The same, divided by the largest absolute logit.
        world_size: Processes that trained.
        mask_hashes: For each process, a hash of its masks and their scores.
        seed: The run's seed, `None` where it was not fixed.
        command: The command line that repeats the run.
        versions: Package to version, see `bplightning.io.provenance.versions`.
        machine: See `bplightning.measuring.measure.machine`.
        date: ISO 8601 in UTC, see `bplightning.io.provenance.now`.
        monitor: The metric by which the best model is chosen.
        data: The task's description of its validation data, as JSON, or `None`.
        stream: Dimensions of the residual stream kept, and their total; `None` where its width stays.
        skipped: Names of the sub-layers that are skipped together with their norm.
        patterns: The blocks left inside the heads, see `bplightning.reporting.patterns.head_patterns`.
        distillation: The teacher and its losses; `None` without one.
        simplification: The settings of simplification; `None` without it.
        alignment: The removed units that were restored; `None` without alignment.
        refill: How the compact model was fine-tuned; `None` where it was not.
        snap: The last correction of the masks; `None` where no target was steered to.
        quantized: The compact model in 8 bits; `None` where it was not quantized.
        family: Other models that the run saved.

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
    """Write the report as JSON; a reader finds either all of it or the previous file.

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
            f"report {str(path)!r} does not exist: a run writes it at its end, next to config.yaml; give that folder."
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
