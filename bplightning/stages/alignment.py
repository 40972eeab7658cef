"""Alignment: removed feed-forward units are put back until the width of each layer is one that suits the hardware.

Kernels of matrix products compute whole tiles, so a width a little below a multiple of the tile is not faster than that
multiple. Units come back in the masks, before those are hardened: masked and compact model change together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.measuring import measure
from bplightning.measuring.timing import INTERVAL_ROUNDS, Middle, Times, paired_ratio
from bplightning.plugins import name_of
from bplightning.reporting.schema import Aligned, AlignedLayer, AlignmentCandidate, Numbers
from bplightning.stages.stage_cache import Notes
from bplightning.training.module import PruningModule
from bplightning.training.restore_units import masks_restored, restore_units

AUTO = "auto"
"""A multiple that is to be found by measurement."""

MULTIPLES = (1, 8, 16, 32, 64)
"""Multiples that are measured for it; 1 is no alignment."""

SLOWER = 1.01
"""A multiple is not taken where another one is surely so many times faster, at 95 % confidence."""

SECONDS = 2.5
"""Time spent on each model and shape, in seconds."""


class Alignment:
    """Widths of feed-forward layers that suit the hardware, for speed.

    The best-scored of the removed units are put back at the end of pruning; the compact model still computes what the
    masked one does. The report says what it cost and what it gained, measured. Layers pruned by N:M stay as they are.

    Args:
        multiple_of: Units that each layer's width is to be a multiple of, 1 or more, such as 8, 16 or 64, as far as the
            dense width goes; 1 leaves widths as they are. Or auto: the fastest of 1, 8, 16, 32 and 64 on this machine,
            the smallest of those that are not surely 1 % slower.
    """

    def __init__(self, multiple_of: int | str = 1) -> None:
        whole = isinstance(multiple_of, int) and not isinstance(multiple_of, bool)
        if multiple_of != AUTO and not (whole and int(multiple_of) >= 1):
            raise UserError(
                f"alignment's multiple_of is {multiple_of!r}; it must be a whole number of units such as 16, 1 to "
                f"leave widths as they are, or {AUTO!r} to measure which is fastest."
            )
        self.multiple_of = multiple_of


def require_possible(settings: Alignment, strategy: PruningStrategy) -> None:
    """Refuse to put units back of which a strategy leaves nothing, or for which the others make up already.

    Raises:
        UserError: That is wanted of such a strategy.
    """
    if settings.multiple_of != 1 and not strategy.puts_back:
        raise UserError(
            f"alignment's multiple_of is {settings.multiple_of}, but strategy {name_of(type(strategy))!r}, as it is "
            "set, lets the units that stay make up for those that go, and those put back would be wrong: leave it at "
            "1. The report says how fast the model is with the widths that it has."
        )


def align(
    trainer: Trainer,
    module: PruningModule,
    task: Task,
    settings: Alignment,
    *,
    notes: Notes,
    evaluate: Callable[[PreTrainedModel], Numbers],
    dtype: torch.dtype | None = None,
) -> Aligned | None:
    """Put units back in the masks of a trained module, so that its feed-forward layers have suitable widths.

    Args:
        trainer: Lightning's trainer, for its devices; its ranks do as the first one found best.
        module: The trained module; its masks are changed.
        task: Its task, for inputs.
        settings: What widths are to be.
        notes: Get what was found, by ``alignment``: a process that goes on does not measure again.
        evaluate: From a hardened model to its metrics; of the model before alignment, where that changes any.
        dtype: Precision to measure in; by default as it was trained.

    Returns:
        What a report says of it; `None` where widths are to stay as they are.
    """
    if settings.multiple_of == 1:
        if trainer.strategy.root_device.type == "cuda" and module.strategy.puts_back:
            rank_zero_info(
                "Feed-forward widths stay as they came out. In 16 bits a GPU is slow with those that are no multiples "
                "of 8: give --alignment.multiple_of 16, or auto, or `compact RUN OUT --multiple_of 16` later."
            )
        return None

    def find() -> Aligned:
        before = restore_units(module, 1)
        device = trainer.strategy.root_device
        mine = _find(module, task, settings, before, device=device, dtype=dtype) if trainer.is_global_zero else None
        found = cast(Aligned, trainer.strategy.broadcast(mine))
        if found["units_added"]:
            found["metrics_before"] = evaluate(before)
        return found

    aligned: Aligned = notes.once("alignment", find)
    multiple = aligned["multiple_of"]
    restore_units(module, multiple)
    widths = "stay as they are, which is the fastest" if multiple == 1 else f"are made multiples of {multiple}"
    rank_zero_info(f"Feed-forward widths {widths}: {aligned['units_added']} units put back.")
    return aligned


def _find(
    module: PruningModule,
    task: Task,
    settings: Alignment,
    before: PreTrainedModel,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Aligned:
    """Measure what is to be chosen from, choose, and say what follows; the masks are as before then."""
    auto = settings.multiple_of == AUTO
    multiples = MULTIPLES if auto else (1, int(settings.multiple_of))
    models: dict[int, Any] = {}
    for multiple in multiples:
        with masks_restored(module.strategy.all_masks):
            models[multiple] = compact(restore_units(module, multiple))
    times = _times(models, task, device=device, dtype=dtype)
    chosen = fastest(times) if auto else multiples[-1]
    widths = {multiple: _widths(model.compaction_plan) for multiple, model in models.items()}
    count = {multiple: sum(of.values()) for multiple, of in widths.items()}
    layout = module.layout
    assert layout is not None
    kept, of = (measure.parameters(before, layout, nonzero=nonzero)["encoder_linear"] for nonzero in (True, False))
    sizes = [measure.parameters(models[multiple], layout)["all"] for multiple in (1, chosen)]
    return Aligned(
        multiple_of=chosen,
        auto=auto,
        units_added=count[chosen] - count[1],
        parameters_added=sizes[1] - sizes[0],
        by_layer=[
            AlignedLayer(name=name, before=width, after=widths[chosen][name]) for name, width in widths[1].items()
        ],
        density_before=kept / of,
        metrics_before=None,
        candidates=[
            AlignmentCandidate(
                multiple_of=multiple,
                units_added=count[multiple] - count[1],
                speedup=measure.speedup(times[1], times[multiple]),
            )
            for multiple in multiples
        ],
    )


def fastest(times: Mapping[int, Mapping[str, Times]]) -> int:
    """The multiple to take: the fastest by the median over shapes, or a smaller one that is not surely 1 % slower.

    Where the machine is noisy and nothing is sure, that is the smallest: units are put back for what was measured.

    Args:
        times: Multiple to shape to latency, of models timed together.

    >>> slow, fast, noisy = ((9.0,) * 6, (8.0,) * 6, (7.0, 9.1) * 3)
    >>> models = {1: slow, 8: fast, 16: noisy, 64: fast}
    >>> fastest({multiple: {"1x128": Times(rounds, rounds)} for multiple, rounds in models.items()})
    8
    """

    def slower(multiple: int, other: int) -> list[Middle]:
        return [paired_ratio(times[multiple][shape], times[other][shape]) for shape in times[multiple]]

    best = min(times, key=lambda multiple: median(ratio.value for ratio in slower(multiple, min(times))))
    surely = {multiple: median(ratio.low or 0.0 for ratio in slower(multiple, best)) for multiple in times}
    return min(multiple for multiple, at_least in surely.items() if at_least < SLOWER)


def _times(
    models: Mapping[int, Any], task: Task, *, device: torch.device, dtype: torch.dtype | None
) -> dict[int, dict[str, Times]]:
    """Multiple to shape to latency, all timed side by side; alike models are one."""
    first_of: dict[tuple[int, ...], int] = {}
    same_as = {
        multiple: first_of.setdefault(tuple(_widths(model.compaction_plan).values()), multiple)
        for multiple, model in models.items()
    }
    names = [str(multiple) for multiple in dict.fromkeys(same_as.values())]
    rank_zero_info(f"Measuring feed-forward widths that are multiples of {', '.join(names)} side by side.")
    timed: dict[str, nn.Module] = {name: models[int(name)].to(device, dtype) for name in names}
    shapes = measure.fitting(models[1], measure.DEFAULT_SHAPES)
    seconds = SECONDS * len(timed) if len(timed) > 1 else 0.0
    times = measure.latency(timed, task.example_inputs, shapes, seconds=seconds, min_rounds=INTERVAL_ROUNDS)
    return {multiple: times[str(same)] for multiple, same in same_as.items()}


def _widths(plan: CompactionPlan) -> dict[str, int]:
    return {name: len(kept) for name, kept, _ in plan.units}
