"""The schema of a plan: plain JSON, from which the tables are drawn; `bplightning plan --json` prints it."""

from __future__ import annotations

from typing import Literal, TypedDict

from bplightning.measuring.records import Machine, ParameterCount

WHOLE = ("head", "unit")
"""Granularities at which everything that is pruned makes the model smaller."""

SCHEMA_VERSION = 3
"""Raised by one whenever a key is renamed, removed, added or changes its meaning or unit.

Version 1 had no ``measured``, version 2 no ``engine``.
"""


class PlannedModel(TypedDict):
    """The dense model; `embeddings` is the number of parameters in its embedding tables."""

    name: str
    type: str
    class_name: str
    parameters: ParameterCount
    embeddings: int


class PlannedRole(TypedDict):
    """All groups of one role: how many heads or units they have, and how the strategy masks them.

    An entry of a mask keeps or drops from ``entry_weights[0]`` to ``entry_weights[1]`` weights at once; `scores` is the
    number of learned scores. Without masks, `granularity` and `entry_weights` are empty.
    """

    role: str
    kind: str
    groups: int
    size: int
    weights: int
    masked_weights: int
    granularity: list[str]
    masks: int
    entries: int
    entry_weights: list[float]
    scores: int


class PlannedGroup(TypedDict):
    """One sub-layer (or expert): `size` counts query heads or units.

    `obstacle` says why compaction cannot remove its heads or units yet, `null` where it can.
    """

    name: str
    role: str
    stack: str
    layer: int
    kind: str
    size: int
    kv_heads: int | None
    head_size: int | None
    weights: int
    masked_weights: int
    granularity: list[str]
    obstacle: str | None


class Prunable(TypedDict):
    """Weights under masks, and their share of the two denominators, in [0, 1]; `scores` counts all learned scores."""

    weights: int
    of_encoder_linear: float
    of_all_parameters: float
    scores: int


class NotPruned(TypedDict):
    """Parameters that no strategy prunes; `names` have ``*`` for the number of a layer."""

    what: str
    parameters: int
    names: list[str]


class Tie(TypedDict):
    """Parts that belong together.

    `how`: ``mask``, they share the entries of a mask; ``tensor``, one parameter under several names; ``storage``,
    several prunable weights in one parameter; ``position_bias``, attentions that look up one table.
    """

    how: Literal["mask", "tensor", "storage", "position_bias"]
    what: str
    names: list[str]


class Problem(TypedDict):
    """Why the strategy refuses a group, or with `group` null, the model.

    `shapes` are those of the group's weights, ``[rows, columns]``; a block of any of `rows` by any of `columns` divides
    all weights of the role's refused groups.
    """

    group: str | None
    role: str | None
    message: str
    shapes: list[list[int]]
    rows: list[int]
    columns: list[int]


class Estimate(TypedDict):
    """Size and FLOPs of the compact model if everything pruned is removed as whole heads and units.

    `density` is the fraction kept of the weights under masks, in total and by role; `flops` and `speedup` (dense over
    pruned FLOPs) by shape ``"BxL"``.
    """

    density: float
    by_role: dict[str, float]
    parameters: ParameterCount
    flops: dict[str, int]
    speedup: dict[str, float]


class Estimates(TypedDict):
    """Estimates of the compact model.

    `density_from`: ``schedule`` where the strategy's schedule ends at a density, the only one of `at`; ``training``
    where the density follows from training, and `at` holds examples.
    """

    density_from: Literal["schedule", "training"]
    dense_flops: dict[str, int]
    at: list[Estimate]


class MeasuredModel(TypedDict):
    """A model timed along with the dense one: the dense model itself, or a compact copy pruned at random.

    `density` is the fraction asked for, `kept` the one reached with whole heads and units, of the weights that can
    shrink; `target` is true where the strategy's schedule ends there. `heads` are query heads. By shape ``"BxL"``, one
    forward
    pass: `flops`, `ideal` (dense over own FLOPs), `latency_ms` (median), `speedup` (median of the paired ratios dense
    over own time), `within` (its 95 % confidence interval, two numbers) and `efficiency` (speed-up over ideal).
    """

    density: float
    target: bool
    by_role: dict[str, float]
    kept: float
    heads: int
    units: int
    parameters: ParameterCount
    flops: dict[str, int]
    ideal: dict[str, float]
    latency_ms: dict[str, float]
    speedup: dict[str, float]
    within: dict[str, list[float]]
    efficiency: dict[str, float]


class Measured(TypedDict):
    """The possible gain on one machine.

    `at` is empty, and `limit` null, where nothing that is pruned makes the model smaller. `limit` is a model without
    heads and units. `saturation` is, by shape, the density below which halving it again makes the model less than 10 %
    faster, with times interpolated between the measured ones; null where it is below the lowest density measured.
    `seed` chose the heads and units that were removed.
    """

    machine: Machine
    dtype: str
    seed: int
    dense: MeasuredModel
    at: list[MeasuredModel]
    limit: MeasuredModel | None
    saturation: dict[str, float | None]


class Engine(TypedDict):
    """Whether a program that runs models can hold the pruned one: `message` says how, or why not and what would fit."""

    name: str
    holds: bool
    message: str


class Plan(TypedDict):
    """The whole document.

    `estimates` is null where there are problems or nothing is pruned, `measured` and `engine` where there are problems
    or they were not asked for.
    """

    schema_version: int
    task: str | None
    strategy: str
    model: PlannedModel
    roles: list[PlannedRole]
    groups: list[PlannedGroup]
    prunable: Prunable
    not_pruned: list[NotPruned]
    tied: list[Tie]
    estimates: Estimates | None
    measured: Measured | None
    engine: Engine | None
    problems: list[Problem]
