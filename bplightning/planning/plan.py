"""Finding the parts of a model that a strategy would prune, without training.

Only the strategy contract is used: a copy of the strategy attaches its masks to a copy of the model, advances to the
end of its schedule, and reports the density that it keeps.
"""

from __future__ import annotations

import copy
import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bplightning.compaction.example_inputs import random_inputs
from bplightning.contracts.capabilities import Staged
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.suitability import prunes_by_training
from bplightning.errors import UserError
from bplightning.layout.families import Family
from bplightning.layout.groups import AttentionGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, kind_of, size_of
from bplightning.masks.masking import Mask
from bplightning.measuring import measure
from bplightning.planning.estimate import estimates
from bplightning.planning.inventory import alone, embeddings, not_pruned, obstacle, shrinks, ties
from bplightning.planning.schema import (
    SCHEMA_VERSION,
    Estimates,
    Plan,
    PlannedGroup,
    PlannedModel,
    PlannedRole,
    Problem,
    Prunable,
)
from bplightning.plugins import name_of

NOMINAL_STEPS = 1_000_000
"""Optimizer steps of a run whose length is unknown, because no data is read.

It is so long that warm-ups given in steps leave room for the schedule. The end of a schedule does not depend on its
length.
"""


def plan(
    model: nn.Module,
    strategy: PruningStrategy,
    *,
    task: str | None = None,
    family: Family | None = None,
    make_inputs: Callable[[int, int], Mapping[str, Tensor]] | None = None,
    shapes: Sequence[tuple[int, int]] = measure.DEFAULT_SHAPES,
    end: Progress | None = None,
) -> Plan:
    """Plan what `strategy` would prune of `model`; both stay unchanged.

    Args:
        model: A transformers model, dense or compact.
        strategy: A strategy that is not yet attached to a model.
        task: The task's name, for the title.
        family: The row of the family table to read the model with; by default that of its ``model_type``.
        make_inputs: Returns the model's keyword arguments for rows and tokens, for counting FLOPs; by default random
            tokens, as many for a decoder as for its encoder, or random images.
        shapes: Rows and tokens at which FLOPs are counted, `measure.fitting` the model.
        end: The last step of training; by default that of a long run without warm-up.

    Returns:
        The plan, plain JSON; `bplightning.planning.table.render` draws it.

    Raises:
        UserError: The architecture is not supported, or the strategy is already attached. A refusal by the strategy is
            no exception, but one of the plan's problems.
    """
    if strategy.all_masks:
        raise UserError("the strategy already has masks: give `plan` a new one, of which it attaches a copy.")
    layout = PrunableLayout.of(model, family)
    attached, problems = _attach(layout, strategy)
    masks = [mask for trial in attached for mask in trial.all_masks]
    groups = [_planned_group(layout, group, masks) for group in layout.groups]
    counts = measure.parameters(model, layout)
    found: Estimates | None = None
    if (told := _data_needed(strategy)) is not None:
        problems = [*problems, _problem(layout, None, told)]
    if masks and not problems:
        try:
            density = _known_density(attached[0], end or Progress(NOMINAL_STEPS, NOMINAL_STEPS, warmup_steps=0))
        except UserError as error:
            problems = [_problem(layout, None, str(error))]
        else:
            shrinking = [group for group, planned in zip(layout.groups, groups, strict=True) if shrinks(planned)]
            make_inputs = make_inputs or (lambda rows, tokens: random_inputs(model, rows, tokens))
            fitting = measure.fitting(model, shapes)
            flops = {shape: measure.flops_by_module(model, make_inputs(*shape)) for shape in fitting}
            found = estimates(model, shrinking, parameters=counts, flops=flops, density=density)
    prunable = set(layout.members)  # a mask of the stream multiplies norms, which are not linear weights
    masked = sum(mask.total_weights for mask in masks if any(cover.member in prunable for cover in mask.covers))
    own = {id(parameter) for parameter in model.parameters()}
    learned = {id(p): p.numel() for trial in attached for p in trial.parameters() if id(p) not in own}
    return Plan(
        schema_version=SCHEMA_VERSION,
        task=task,
        strategy=name_of(type(strategy)),
        model=_planned_model(layout),
        roles=_planned_roles(groups, masks),
        groups=groups,
        prunable=Prunable(
            weights=masked,
            of_encoder_linear=masked / counts["encoder_linear"] if masked else 0.0,
            of_all_parameters=masked / counts["all"] if masked else 0.0,
            scores=sum(learned.values()),
        ),
        not_pruned=not_pruned(layout),
        tied=ties(layout, masks),
        estimates=found,
        measured=None,
        engine=None,
        problems=problems,
    )


# -- through the contract ----------------------------------------------------------------------------------------------


def _attach(layout: PrunableLayout, strategy: PruningStrategy) -> tuple[list[PruningStrategy], list[Problem]]:
    """A copy of the strategy attached to a copy of the model; if it refuses, one copy for each group that it accepts.

    A strategy refuses all groups with one message; trying them one by one shows which are meant.
    """

    def attempt(part: PrunableLayout) -> PruningStrategy:
        tensors = itertools.chain(part.model.parameters(), part.model.buffers())
        shell = copy.deepcopy(part.model, {id(tensor): tensor for tensor in tensors})  # weights are not copied
        trial = copy.deepcopy(strategy)
        trial.attach(replace(part, model=shell))
        return trial

    try:
        return [attempt(layout)], []
    except UserError as error:
        refusal = error
    attached, refused = [], {}
    for group in layout.groups:
        try:
            attached.append(attempt(alone(layout, group)))
        except UserError as error:
            refused[group] = error
    if not refused:
        return attached, [_problem(layout, None, str(refusal))]
    return attached, [
        _problem(layout, group, str(error), alike=[other for other in refused if other.role == group.role])
        for group, error in refused.items()
    ]


def _data_needed(strategy: PruningStrategy) -> str | None:
    """Why the strategy's densities cannot be known without data; `None` where they can."""
    by_training = prunes_by_training(strategy)
    if strategy.capability(Staged) is None and by_training:
        return None
    data = "how much of each layer is removed follows from data, which `plan` does not read"
    return f"{data}: `{'fit' if by_training else 'prune'}` reports it when it prunes."


def _known_density(strategy: PruningStrategy, end: Progress) -> dict[str, float]:
    """As `_final_density`; a refusal says where it is about a length that is only assumed."""
    try:
        return _final_density(strategy, end)
    except UserError as error:
        if end.total_steps != NOMINAL_STEPS:
            raise
        assumed = f" ({NOMINAL_STEPS:,} steps are assumed here, because no data is read.)"
        raise UserError(f"{error}{assumed}") from error


@torch.no_grad()
def _final_density(strategy: PruningStrategy, end: Progress) -> dict[str, float]:
    """The density that the strategy keeps at the end of its schedule, by role, while scores carry no information."""
    for mask in strategy.all_masks:
        if mask.scores is not None:
            # Equal scores would let a ranking over the whole model favour whatever comes first. So they are spread
            # evenly within each mask, so little that no threshold lies between them.
            spread = torch.linspace(-1e-6, 1e-6, mask.scores.numel(), device=mask.scores.device)
            mask.scores.copy_(spread.view_as(mask.scores))
    strategy.advance(replace(end, step=0))
    # A strategy that updates its masks only now and then does so at the step where it reaches its target.
    steps = range(end.total_steps)
    reached = bisect_left(steps, True, key=lambda step: strategy.target_reached(replace(end, step=step)))
    strategy.advance(replace(end, step=reached))
    strategy.advance(end)
    return {role: float(value) for role, value in strategy.density().items()}


def _problem(layout: PrunableLayout, group: Group | None, message: str, alike: Sequence[Group] = ()) -> Problem:
    """The refusal, with the blocks that would divide all groups of the role."""

    def shapes(groups: Iterable[Group]) -> list[tuple[int, int]]:
        sizes = (tuple(member.weight(layout.model).shape) for each in groups for member in each.members)
        return list(dict.fromkeys(sizes))  # type: ignore[arg-type]

    rows, columns = zip(*shapes(alike), strict=True) if alike else ((), ())
    return Problem(
        group=group.name if group else None,
        role=group.role if group else None,
        message=message,
        shapes=[list(shape) for shape in shapes([group] if group else [])],
        rows=_divisors(math.gcd(*rows)),
        columns=_divisors(math.gcd(*columns)),
    )


def _divisors(number: int) -> list[int]:
    """All divisors, ascending; 0 has none.

    >>> _divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


# -- the parts of the document -----------------------------------------------------------------------------------------


def _planned_model(layout: PrunableLayout) -> PlannedModel:
    config = layout.model.config
    return PlannedModel(
        name=str(config._name_or_path),  # type: ignore[union-attr]
        type=str(config.model_type),  # type: ignore[union-attr]
        class_name=type(layout.model).__name__,
        parameters=measure.parameters(layout.model, layout),
        embeddings=sum(parameter.numel() for _, parameter in embeddings(layout)),
    )


def _planned_group(layout: PrunableLayout, group: Group, masks: Sequence[Mask]) -> PlannedGroup:
    mine = _masks_on(group, masks)
    attention = group if isinstance(group, AttentionGroup) else None
    masked = [cover.member for mask in mine for cover in mask.covers if cover.member in group.members]
    return PlannedGroup(
        name=group.name,
        role=group.role,
        stack=group.name.partition(".")[0],
        layer=group.layer,
        kind=kind_of(group),
        size=attention.heads if attention else size_of(group),
        kv_heads=attention.kv_heads if attention else None,
        head_size=attention.head_size if attention else None,
        weights=_weights(layout, group.members),
        masked_weights=_weights(layout, masked),
        granularity=sorted({_granularity(layout, group, mask) for mask in mine}),
        obstacle=obstacle(layout, group),
    )


def _planned_roles(groups: Sequence[PlannedGroup], masks: Sequence[Mask]) -> list[PlannedRole]:
    roles = []
    for role in dict.fromkeys(group["role"] for group in groups):
        own = [group for group in groups if group["role"] == role]
        carried = [mask for mask in masks if mask.role == role]
        sizes = {mask.weights_per_entry for mask in carried}
        roles.append(
            PlannedRole(
                role=role,
                kind=own[0]["kind"],
                groups=len(own),
                size=sum(group["size"] for group in own),
                weights=sum(group["weights"] for group in own),
                masked_weights=sum(group["masked_weights"] for group in own),
                granularity=sorted({each for group in own for each in group["granularity"]}),
                masks=len(carried),
                entries=sum(mask.kept.numel() for mask in carried),
                entry_weights=[min(sizes), max(sizes)] if sizes else [],
                scores=sum(mask.scores.numel() for mask in carried if mask.scores is not None),
            )
        )
    return roles


def _masks_on(group: Group, masks: Sequence[Mask]) -> list[Mask]:
    return [mask for mask in masks if any(cover.member in group.members for cover in mask.covers)]


def _weights(layout: PrunableLayout, members: Iterable[Member]) -> int:
    return sum(member.weight(layout.model).numel() for member in members)


def _granularity(layout: PrunableLayout, group: Group, mask: Mask) -> str:
    """The granularity of a mask, found from its grid."""
    if mask.pattern is not None:
        return "{}:{}".format(*mask.pattern)
    rows, columns = mask.kept.shape
    if (rows, columns) == (size_of(group), 1) and {cover.member for cover in mask.covers} >= set(group.members):
        return kind_of(group).removesuffix("s")
    out_features, in_features = mask.covers[0].member.weight(layout.model).shape
    if mask.covers[0].transposed:
        out_features, in_features = in_features, out_features
    tile = out_features // rows, in_features // columns
    named = {(1, 1): "element", (1, in_features): "row", (out_features, 1): "column"}
    return named.get(tile, "{}x{}".format(*tile))
