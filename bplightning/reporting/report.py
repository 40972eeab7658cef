"""The report of a run, as JSON: scores, sizes, speed, and how they were measured.

`build_report` is a pure function of what a run has found out. The table, the page and the model card are drawn from the
JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, cast

from bplightning.errors import UserError
from bplightning.io.files import write_whole
from bplightning.io.printable import printable_throughout
from bplightning.io.private import without_secrets
from bplightning.measuring.records import ParameterCount
from bplightning.reporting.findings import (
    Differences,
    LayerKept,
    Origin,
    Scores,
    Sizes,
    Speed,
    StagesDone,
    Structure,
)
from bplightning.reporting.run_warnings import warnings_of
from bplightning.reporting.schema import (
    SCHEMA_VERSION,
    Aligned,
    Bytes,
    Density,
    Equivalence,
    Flops,
    HeadLayer,
    Heads,
    LatencyMs,
    LogitDifference,
    Metrics,
    Numbers,
    Parameters,
    Report,
    UnitLayer,
    Units,
    validate_report,
)
from bplightning.reporting.table import render

__all__ = [
    "SCHEMA_VERSION",
    "Report",
    "build_report",
    "load_report",
    "render",
    "save_report",
    "validate_report",
]


def build_report(
    origin: Origin,
    scores: Scores,
    structure: Structure,
    sizes: Sizes,
    speed: Speed,
    differences: Differences,
    stages: StagesDone,
) -> Report:
    """The report from what was found out alone; what is absent from a mapping over models counts as not measured.

    Args:
        origin: Which run it was, and what repeats it.
        scores: What the models are worth.
        structure: What is left of the network.
        sizes: How big the models are.
        speed: How fast they are.
        differences: How far logits differ that are to be equal.
        stages: What was done besides pruning.

    Returns:
        The document, ready for `save_report` and `render`.
    """
    full, masked = sizes.parameters["dense"], sizes.parameters["masked"]
    report = Report(
        schema_version=SCHEMA_VERSION,
        date=origin.date,
        task=origin.task,
        strategy=origin.strategy,
        model=origin.model,
        warnings=[],
        metrics=Metrics(
            dense=_numbers(scores.metrics.get("dense")),
            masked=_numbers(scores.metrics.get("masked")),
            compact=_numbers(scores.metrics.get("compact")),
        ),
        score_interval=_intervals(scores.intervals),
        classes=scores.classes,
        samples=list(scores.samples),
        monitor=scores.monitor,
        data=_settings(scores.data),
        evaluation=_settings(scores.evaluation),
        distillation=_settings(stages.distillation),
        simplification=_settings(stages.simplification),
        alignment=None if stages.alignment is None else _finite(stages.alignment),
        refill=stages.refill,
        snap=stages.snap,
        quantized=stages.quantized,
        portable=stages.portable,
        family=[{**variant, "metrics": _numbers(variant["metrics"]) or {}} for variant in stages.size_variants],
        density=Density(
            encoder_linear=masked["encoder_linear"] / full["encoder_linear"],
            all_parameters=masked["all"] / full["all"],
            by_role={role: float(fraction) for role, fraction in structure.density_by_role.items()},
        ),
        heads=_heads(structure.heads_by_layer, structure.queries_by_layer),
        units=_units(structure.units_by_layer),
        stream=structure.stream,
        skipped=list(structure.skipped),
        patterns=list(structure.patterns),
        parameters=Parameters(dense=_count(full), masked=_count(masked), compact=_count(sizes.parameters["compact"])),
        vocabulary=sizes.vocabulary,
        dtype=sizes.dtype,
        bytes_on_disk=Bytes(dense=sizes.bytes_on_disk.get("dense"), compact=sizes.bytes_on_disk.get("compact")),
        flops=Flops(dense=speed.flops.get("dense"), compact=speed.flops.get("compact"), shape=speed.flops_shape),
        latency_ms=LatencyMs(
            dense=_plain(speed.latency_ms.get("dense")), compact=_plain(speed.latency_ms.get("compact")) or {}
        ),
        speedup=_plain(speed.speedup),
        speedup_interval=dict(speed.speedup_interval),
        equivalence=_equivalence(differences),
        world_size=origin.world_size,
        mask_hashes=list(origin.mask_hashes),
        seed=origin.seed,
        command=origin.command,
        versions=dict(origin.versions),
        machine=origin.machine,
    )
    report["warnings"] = warnings_of(report, alike=scores.alike)
    return cast(Report, without_secrets(report, by_name=False))  # an attention's key is no secret


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
    return validate_report(printable_throughout(document), name=str(path))


def _heads(layers: Sequence[LayerKept], queries: Mapping[str, int]) -> Heads:
    by_layer = [
        HeadLayer(
            name=name,
            kept=len(kept),
            total=total,
            queries=queries.get(name, 1),
            indices=[int(index) for index in kept],
        )
        for name, kept, total in layers
    ]
    return Heads(kept=sum(h["kept"] for h in by_layer), total=sum(h["total"] for h in by_layer), by_layer=by_layer)


def _units(layers: Sequence[LayerKept]) -> Units:
    by_layer = [UnitLayer(name=name, kept=len(kept), total=total) for name, kept, total in layers]
    return Units(kept=sum(u["kept"] for u in by_layer), total=sum(u["total"] for u in by_layer), by_layer=by_layer)


def _equivalence(differences: Differences) -> Equivalence:
    absolute, relative = differences.absolute, differences.relative
    return Equivalence(
        masked_compact=_number(absolute.get("masked_compact")),
        compact_reloaded=_number(absolute.get("compact_reloaded")),
        relative=LogitDifference(
            masked_compact=_number(relative.get("masked_compact")),
            compact_reloaded=_number(relative.get("compact_reloaded")),
        ),
    )


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(values)


def _settings(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a user has said, and a plugin hands on."""
    if values is None:
        return None
    settings: dict[str, Any] = without_secrets(dict(values))
    return settings


def _number(value: SupportsFloat | None) -> float | None:
    """A plain float (also from a tensor); JSON holds neither NaN nor infinity."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _numbers(values: Mapping[str, SupportsFloat | None] | None) -> Numbers | None:
    return None if values is None else {name: _number(value) for name, value in values.items()}


def _intervals(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, list[float]]]:
    """The intervals whose ends are finite."""
    return {
        model: {name: list(map(float, ends)) for name, ends in of.items() if all(map(math.isfinite, ends))}
        for model, of in found.items()
    }


def _finite(aligned: Aligned) -> Aligned:
    return {**aligned, "metrics_before": _numbers(aligned["metrics_before"])}


def _count(count: ParameterCount) -> ParameterCount:
    return ParameterCount(encoder_linear=int(count["encoder_linear"]), all=int(count["all"]))
