"""What a run has found out, in the records that `bplightning.reporting.report.build_report` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from bplightning.measuring.records import Interval, Machine, ParameterCount
from bplightning.reporting.schema import (
    Aligned,
    Classes,
    Monitor,
    Pattern,
    PortableCost,
    Quantized,
    Refilled,
    Sample,
    SizeVariant,
    Snap,
    Stream,
    Vocabulary,
)

LayerKept = tuple[str, Sequence[int], int]
"""A layer's name, the indices kept of it (heads or units), and how many there were."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which run it was, and what repeats it.

    Attributes:
        task: The task's name.
        strategy: The pruning strategy's name.
        model: What the run started from, a hub name or a folder.
        command: The command line that repeats the run.
        seed: The run's seed, `None` where it was not fixed.
        date: ISO 8601 in UTC, see `bplightning.io.provenance.now`.
        versions: Package to version, see `bplightning.io.provenance.versions`.
        machine: See `bplightning.measuring.measure.machine`.
        world_size: Processes that trained.
        mask_hashes: Of each of them, a hash of what its masks kept and of their scores.
    """

    task: str
    strategy: str
    model: str
    command: str
    seed: int | None
    date: str
    versions: Mapping[str, str]
    machine: Machine
    world_size: int
    mask_hashes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the models are worth on the task.

    Attributes:
        metrics: ``dense``, ``masked``, ``compact`` to metric name to value.
        evaluation: What the task says of how it measured them, as JSON; `None` where it measured nothing.
        monitor: The metric that says which model is better.
        data: What the task says of the data it was measured on, as JSON; `None` where it says nothing.
        intervals: ``dense``, ``compact`` to metric name to the ends of its 95 % confidence interval.
        classes: Scores of the compact model by class; `None` where the task has no classes.
        samples: A few examples of the validation set with the models' answers.
        alike: How many validation examples were looked at, where the compact model gives all of them the same answer;
            `None` where it does not.
    """

    metrics: Mapping[str, Mapping[str, SupportsFloat] | None]
    evaluation: Mapping[str, Any] | None
    monitor: Monitor | None = None
    data: Mapping[str, Any] | None = None
    intervals: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    classes: Classes | None = None
    samples: Sequence[Sample] = ()
    alike: int | None = None


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What is left of the network.

    Attributes:
        density_by_role: Role to fraction of its weights kept.
        heads_by_layer: For each attention sub-layer its name, the indices of kept heads, and how many there were.
        queries_by_layer: Query heads of one head, by sub-layer, where queries share key/value heads; else 1.
        units_by_layer: For each feed-forward sub-layer its name, the indices of kept units, and how many there were.
        stream: Dimensions of the residual stream kept, and how many there were; `None` where its width stays.
        skipped: Names of the sub-layers that are skipped, and their norm with them.
        patterns: What is left inside the heads, see `bplightning.reporting.patterns.head_patterns`.
    """

    density_by_role: Mapping[str, SupportsFloat]
    heads_by_layer: Sequence[LayerKept]
    units_by_layer: Sequence[LayerKept]
    queries_by_layer: Mapping[str, int] = field(default_factory=dict)
    stream: Stream | None = None
    skipped: Sequence[str] = ()
    patterns: Sequence[Pattern] = ()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How big the models are.

    Attributes:
        parameters: ``dense``, ``masked`` (non-zero ones), ``compact`` to ``encoder_linear`` and ``all``, counts. The
            dense counts are known without a baseline: a masked model has the dense shapes.
        vocabulary: Tokens kept in the compact model, and those of the dense one.
        dtype: Precision the compact model is saved in, for example ``float32``.
        bytes_on_disk: ``dense``, ``compact`` to the size of the weights' files, bytes.
    """

    parameters: Mapping[str, ParameterCount]
    vocabulary: Vocabulary
    dtype: str
    bytes_on_disk: Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast the models are.

    Attributes:
        flops: ``dense``, ``compact`` to operations of one forward pass at `flops_shape`.
        flops_shape: Rows and tokens of that pass, ``"BxL"``.
        latency_ms: ``dense``, ``compact`` to ``"BxL"``, or ``"BxL+N"`` where `N` tokens were generated, to median
            milliseconds.
        speedup: The same to the median of paired dense/compact time ratios; `None` without a dense measurement.
        speedup_interval: The same to the interval of each ratio, and whether it is settled.
    """

    flops: Mapping[str, int | None]
    flops_shape: str
    latency_ms: Mapping[str, Mapping[str, float] | None]
    speedup: Mapping[str, float] | None
    speedup_interval: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How far the logits of models differ that are to compute the same.

    Attributes:
        absolute: ``masked_compact``, ``compact_reloaded`` to the largest absolute difference.
        relative: The same, divided by the largest absolute logit.
    """

    absolute: Mapping[str, SupportsFloat | None]
    relative: Mapping[str, SupportsFloat | None]


@dataclass(frozen=True, kw_only=True)
class StagesDone:
    """What was done besides pruning; `None` and nothing where it was not.

    Attributes:
        distillation: The teacher and what was learned from it.
        simplification: What of the network became simpler.
        alignment: Which removed units were put back; `None` where widths are as pruning left them.
        refill: How the compact model was fine-tuned.
        snap: What the last correction of the masks did; `None` where nothing was steered.
        quantized: What the compact model became in 8 bits.
        portable: What padding costs; `None` where the compact model has its own widths.
        size_variants: Models of other sizes that the run made.
    """

    distillation: Mapping[str, Any] | None = None
    simplification: Mapping[str, Any] | None = None
    alignment: Aligned | None = None
    refill: Refilled | None = None
    snap: Snap | None = None
    quantized: Quantized | None = None
    portable: PortableCost | None = None
    size_variants: Sequence[SizeVariant] = ()
