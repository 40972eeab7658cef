"""The size variants that a run kept, evaluated and timed at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.saved_models import load_saved
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.reporting.schema import Numbers, SizeVariant
from bplightning.stages.stage_cache import Notes
from bplightning.training.size_variants import FOLDER


def measured_variants(
    kept: Sequence[Path],
    task: Task,
    *,
    dense: nn.Module,
    notes: Notes,
    evaluate: Callable[[PreTrainedModel, str], dict[str, Any]],
    measuring: bool,
) -> list[SizeVariant]:
    """What each of the models that can be loaded is worth, the largest first.

    Args:
        kept: Their folders.
        task: The task.
        dense: A model of the dense shapes, to be timed with.
        notes: Keep what is found.
        evaluate: From a model, and a name for the log, to ``metrics``; on all ranks together.
        measuring: Whether to time them, on this rank.
    """
    variants = []
    for folder in kept:
        name = folder.name.removeprefix(FOLDER)
        try:
            model: PreTrainedModel = load_saved(task.load_model, folder, what=f"the model {name!r}")
        except UserError as error:  # the last model is whole, and its report is worth more than this one's
            rank_zero_warn(f"{error} The report goes without it.")
            continue
        metrics: Numbers = notes.once(f"size variant {name}", partial(evaluate, model, name))["metrics"]
        if not measuring:
            continue
        nn.Module.to(model, next(dense.parameters()).device)
        rank_zero_info(f"Measuring the model {name!r} side by side with the dense one.")
        shapes = measure.fitting(model, measure.DEFAULT_SHAPES)
        times = measure.latency({"dense": dense, name: model}, task.example_inputs, shapes)
        variants.append(
            SizeVariant(
                name=name,
                folder=folder.name,
                metrics=metrics,
                parameters=measure.parameters(model, PrunableLayout.of(model)),
                bytes_on_disk=measure.bytes_on_disk(folder),
                speedup=measure.speedup(times["dense"], times[name]),
                speedup_interval=measure.speedup_interval(times["dense"], times[name]),
            )
        )
    return sorted(variants, key=lambda variant: -variant["parameters"]["all"])
