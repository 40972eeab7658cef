"""The schema of ``report.json``: types that mypy checks where a report is built and `validate_report` where it is read.

``docs/report-schema.md`` explains every key.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

from bplightning.errors import UserError
from bplightning.io.schema import PROBLEMS, schema_problems
from bplightning.measuring.records import Interval, Machine, ParameterCount

SCHEMA_VERSION = 8
"""Raised by one whenever a key is renamed, removed, added or changes its meaning or unit."""

_STAGES = {"distillation": None, "simplification": None, "refill": None, "snap": None}
_LATER: dict[str, Any] = {"alignment": None, "mask_hashes": []}
_NEW: dict[str, Any] = {"patterns": [], "data": None, "monitor": None, "quantized": None}
_STREAM: dict[str, Any] = {"stream": None, "skipped": []}
_SEEN: dict[str, Any] = {
    "portable": None,
    "warnings": [],
    "speedup_interval": {},
    "score_interval": {},
    "classes": None,
    "samples": [],
}
_FAMILY: dict[str, Any] = {"family": [], **_STREAM, **_SEEN}
ADDED: dict[int, dict[str, Any]] = {
    2: {"evaluation": None, **_STAGES, **_LATER, **_NEW, **_FAMILY},
    3: _STAGES | _LATER | _NEW | _FAMILY,
    4: _LATER | _NEW | _FAMILY,
    5: _FAMILY,
    6: _STREAM | _SEEN,
    7: _SEEN,
    8: {},
}
"""Each version that can be read, to the keys that it may lack, with their default."""


Numbers = dict[str, float | None]
"""Name to number; `None` where the number was not finite, which JSON cannot hold."""


class Metrics(TypedDict):
    """Metrics of the three models; `None` for a model that was not evaluated."""

    dense: Numbers | None
    masked: Numbers | None
    compact: Numbers | None


class Monitor(TypedDict):
    """The metric by which the best model is chosen, and whether its ``"max"`` or ``"min"`` is best."""

    metric: str
    mode: str


class Density(TypedDict):
    """Fractions of weights kept, in [0, 1]."""

    encoder_linear: float
    all_parameters: float
    by_role: dict[str, float]


class HeadLayer(TypedDict):
    """Heads of one attention sub-layer: key/value heads, each with so many query heads, `queries`; 1 in most models."""

    name: str
    kept: int
    total: int
    queries: int
    indices: list[int]


class UnitLayer(TypedDict):
    """Hidden units of one feed-forward sub-layer; their indices are in the compaction plan."""

    name: str
    kept: int
    total: int


class Heads(TypedDict):
    """Attention heads over the whole model and by layer."""

    kept: int
    total: int
    by_layer: list[HeadLayer]


class Units(TypedDict):
    """Feed-forward units over the whole model and by layer."""

    kept: int
    total: int
    by_layer: list[UnitLayer]


class Stream(TypedDict):
    """Dimensions of the residual stream."""

    kept: int
    total: int


class Pattern(TypedDict):
    """The weights left in an attention's projections, one digit per tile, as `patterns.levels` writes them."""

    name: str
    tile: list[int]
    projections: dict[str, str]


class Parameters(TypedDict):
    """Parameters of the three models; for `masked` those that are not zero."""

    dense: ParameterCount
    masked: ParameterCount
    compact: ParameterCount


MUCH_LOST = 0.03
"""Share of the validation set's tokens above which a smaller vocabulary is doubted."""


class Trimmed(TypedDict, total=False):
    """What is known of a vocabulary only where `compact --vocabulary` made it smaller."""

    lost: float


class Vocabulary(Trimmed):
    """Tokens that have an embedding."""

    kept: int
    total: int


class Bytes(TypedDict):
    """Size of the files of weights, bytes."""

    dense: int | None
    compact: int | None


class Flops(TypedDict):
    """Floating-point operations of one forward pass at `shape`, written ``"BxL"``."""

    dense: int | None
    compact: int | None
    shape: str


class LatencyMs(TypedDict):
    """Median milliseconds of one forward pass by shape ``"BxL"``."""

    dense: dict[str, float] | None
    compact: dict[str, float]


class LogitDifference(TypedDict):
    """Largest logit difference of two models that should agree."""

    masked_compact: float | None
    compact_reloaded: float | None


class Equivalence(LogitDifference):
    """Largest absolute logit differences, and the same relative to the largest absolute logit."""

    relative: LogitDifference


class AlignedLayer(TypedDict):
    """Units of one feed-forward sub-layer before alignment and after."""

    name: str
    before: int
    after: int


class AlignmentCandidate(TypedDict):
    """Measurements of one multiple; `speedup` over no alignment, by shape ``"BxL"``."""

    multiple_of: int
    units_added: int
    speedup: dict[str, float]


class Aligned(TypedDict):
    """The removed units that were restored, for widths that suit the hardware."""

    multiple_of: int
    auto: bool
    units_added: int
    parameters_added: int
    by_layer: list[AlignedLayer]
    density_before: float
    metrics_before: Numbers | None
    candidates: list[AlignmentCandidate]


class Refilled(TypedDict):
    """How the compact model was fine-tuned."""

    max_epochs: int
    learning_rate: float
    hold_masks: bool
    heads: str
    heads_removed: int
    logit_difference: float | None


class OnnxNumbers(TypedDict):
    """The compact model in ONNX Runtime in one precision; `speedup` over the dense one in torch, by shape ``"BxL"``."""

    kind: str
    metrics: Numbers
    bytes_on_disk: int
    speedup: dict[str, float] | None
    speedup_interval: dict[str, Interval]


class StaticInt8(TypedDict):
    """How ranges and layers were chosen for 8 bits with ranges measured beforehand, and what that is compared with."""

    calibration_examples: int
    max_loss: float
    loss: float
    layers: int
    float_layers: list[str]
    compared: list[OnnxNumbers]


class Quantized(TypedDict):
    """The compact model in 8 bits; `speedup` over the dense model in torch, by shape ``"BxL"``."""

    kind: str
    backend: str
    metrics: Numbers
    bytes_on_disk: int
    speedup: dict[str, float] | None
    speedup_interval: dict[str, Interval]
    static: StaticInt8 | None


class PortableCost(TypedDict):
    """The compact model with uneven widths, where the saved one is padded to what config.json can say.

    `config` has the fields that are smaller than the dense model's, with both values; `speedup` is over that model.
    """

    config: dict[str, list[int]]
    parameters: int
    flops: int
    latency_ms: dict[str, float]
    speedup: dict[str, float]


class Snap(TypedDict):
    """The last correction of the masks, after the penalty was steered to a target.

    A latency target holds for `shape`, ``"BxL"``.
    """

    kind: str
    target: float
    before: float
    after: float
    changed: int
    shape: str | None
    metrics_before: Numbers | None


class SizeVariant(TypedDict):
    """Another model of the same run, listed in `family`; `speedup` over the dense model, by shape ``"BxL"``."""

    name: str
    folder: str
    metrics: Numbers
    parameters: ParameterCount
    bytes_on_disk: int
    speedup: dict[str, float]
    speedup_interval: dict[str, Interval]


class ClassScore(TypedDict):
    """Scores of the compact model on one class, in per cent; `None` where there is nothing to divide by."""

    name: str
    examples: int
    precision: float | None
    recall: float | None
    f1: float | None


class Classes(TypedDict):
    """Scores by class, and how often examples of a class (rows) were taken for each class (columns)."""

    scores: list[ClassScore]
    confusion: list[list[int]] | None


class Sample(TypedDict):
    """One example of the validation set, and what the models answer; `None` without a dense model."""

    example: dict[str, Any]
    dense: dict[str, Any] | None
    compact: dict[str, Any]


class Warned(TypedDict):
    """Something that a reader of the numbers should know first; `run_warnings` has the kinds."""

    kind: str
    message: str


class Report(TypedDict):
    """The whole document, ``report.json``."""

    schema_version: int
    date: str
    task: str
    strategy: str
    model: str
    warnings: list[Warned]
    metrics: Metrics
    score_interval: dict[str, dict[str, list[float]]]
    classes: Classes | None
    samples: list[Sample]
    monitor: Monitor | None
    data: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    distillation: dict[str, Any] | None
    simplification: dict[str, Any] | None
    alignment: Aligned | None
    refill: Refilled | None
    snap: Snap | None
    quantized: Quantized | None
    portable: PortableCost | None
    family: list[SizeVariant]
    density: Density
    heads: Heads
    units: Units
    stream: Stream | None
    skipped: list[str]
    patterns: list[Pattern]
    parameters: Parameters
    vocabulary: Vocabulary
    dtype: str
    bytes_on_disk: Bytes
    flops: Flops
    latency_ms: LatencyMs
    speedup: dict[str, float] | None
    speedup_interval: dict[str, Interval]
    equivalence: Equivalence
    world_size: int
    mask_hashes: list[str]
    seed: int | None
    command: str
    versions: dict[str, str]
    machine: Machine


def validate_report(document: object, *, name: str = "report") -> Report:
    """Check a document against the schema.

    Args:
        document: The values read from JSON.
        name: Its name in messages.

    Returns:
        The document, with the keys added that it may lack.

    Raises:
        UserError: It has another schema version, or keys that are missing, unknown or of another type; each is named.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(document, dict) and type(version) is int and version in ADDED:
        document = {**ADDED[version], **document, "schema_version": SCHEMA_VERSION}
        if isinstance(document["snap"], dict):
            document["snap"] = {"shape": None, **document["snap"]}
        document = _with_intervals(_with_queries(document)) if version < SCHEMA_VERSION else document
    elif version is not None:
        readable = ", ".join(map(str, ADDED))
        raise UserError(
            f"{name} has schema_version {str(version)[:40]}, but this version of bplightning reads {readable}: "
            "read it with the version of bplightning that wrote it (its `versions.bplightning`), or run again."
        )
    problems = list(schema_problems(document, Report))
    if problems:
        shown = "; ".join(problem[:120] for problem in problems[:PROBLEMS])
        more = f"; and {len(problems) - PROBLEMS} more" if len(problems) > PROBLEMS else ""
        raise UserError(
            f"{name} is not a report of schema_version {SCHEMA_VERSION}: {shown}{more}. "
            "docs/report-schema.md lists every key."
        )
    return cast(Report, document)


def _with_queries(document: dict[str, Any]) -> dict[str, Any]:
    """A report of an earlier version, which did not say how many query heads a key/value head has, with 1 of each."""
    heads = document.get("heads")
    layers = heads.get("by_layer") if isinstance(heads, dict) else None
    if not isinstance(layers, list):
        return document
    filled = [{"queries": 1, **layer} if isinstance(layer, dict) else layer for layer in layers]
    return document | {"heads": {**cast(dict[str, Any], heads), "by_layer": filled}}


def _with_intervals(document: dict[str, Any]) -> dict[str, Any]:
    """A report of an earlier version, whose models in 8 bits and of other sizes have no intervals of speed-ups."""
    none: dict[str, Any] = {"speedup_interval": {}}
    quantized, family = document["quantized"], document["family"]
    if isinstance(quantized, dict):
        document = document | {"quantized": {**none, "static": None, **quantized}}
    if isinstance(family, list):
        document = document | {"family": [{**none, **of} if isinstance(of, dict) else of for of in family]}
    return document
