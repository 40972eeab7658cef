"""What the end of a run has found out, as the records that its report is built of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.skipped_sublayers import is_skipped
from bplightning.contracts.task import Task
from bplightning.io.provenance import now, versions
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.plugins import name_of
from bplightning.reporting.findings import Differences, Origin, Scores, Sizes, Speed, Structure
from bplightning.reporting.patterns import head_patterns
from bplightning.reporting.schema import Aligned, Monitor, PortableCost, Sample, Snap, Stream
from bplightning.stages.compact_stage import Compacted
from bplightning.stages.request import RunRequest
from bplightning.stages.stage_cache import Notes
from bplightning.training.module import PruningModule

EQUIVALENCES = ("masked_compact", "compact_reloaded")
"""Pairs of models whose logits are compared."""

GENERATED_TOKENS = 32
"""Tokens that a task which generates is timed with."""


@dataclass(frozen=True)
class Hardened:
    """A model whose masks are zeros now, and what was only known while they were masks.

    Attributes:
        model: The model.
        snap: The last correction of the masks; `None` where no target was steered to.
        aligned: The units that were restored; `None` where widths are as pruning left them.
        density_by_role: Role to fraction of its weights kept.
        mask_hashes: For each process, a hash of its masks.
    """

    model: PreTrainedModel
    snap: dict[str, Any] | None
    aligned: Aligned | None
    density_by_role: dict[str, float]
    mask_hashes: list[str]


def origin_of(trainer: Trainer, module: PruningModule, hardened: Hardened, request: RunRequest) -> Origin:
    """Which run it was, and what repeats it.

    Args:
        trainer: Lightning's trainer.
        module: The task and the strategy together.
        hardened: The hardened model.
        request: What was asked for.
    """
    task = module.task
    return Origin(
        task=name_of(type(task)),
        strategy=name_of(type(module.strategy)),
        # Not the baseline that pruning may have begun from: that is a folder of the run's own.
        model=str(getattr(task, "model", None) or hardened.model.config._name_or_path),
        command=request.command,
        seed=request.seed,
        date=now(),
        versions=versions(),
        machine=measure.machine(trainer.strategy.root_device),
        world_size=trainer.world_size,
        mask_hashes=hardened.mask_hashes,
    )


def scores_of(
    task: Task, results: Mapping[str, Mapping[str, Any]], *, samples: Sequence[Sample], alike: int | None
) -> Scores:
    """What the models are worth.

    Args:
        task: The task.
        results: Name of each model to its metrics, their settings and their details.
        samples: Examples with the models' answers.
        alike: As in `Scores`.
    """
    # A run that was stopped under an earlier version has noted no details.
    details = {name: results[name].get("details", {}) for name in ("dense", "compact") if name in results}
    return Scores(
        metrics={name: values["metrics"] for name, values in results.items()},
        evaluation=results["compact"]["settings"],
        monitor=Monitor(metric=task.monitor, mode=task.monitor_mode),
        data=task.data_settings() or None,
        intervals={name: of["intervals"] for name, of in details.items() if "intervals" in of},
        classes=details["compact"].get("classes"),
        samples=samples,
        alike=alike,
    )


def structure_of(module: PruningModule, hardened: Hardened, made: Compacted) -> Structure:
    """What is left of the network.

    Args:
        module: The task and the strategy together.
        hardened: The hardened model.
        made: The compact model.
    """
    layout, width = module.layout, made.plan.stream
    assert layout is not None
    return Structure(
        density_by_role=hardened.density_by_role,
        heads_by_layer=made.plan.heads,
        units_by_layer=made.plan.units,
        queries_by_layer={group.name: group.heads // max(group.kv_heads, 1) for group in layout.attention},
        stream=None if width is None else Stream(kept=len(width.kept), total=width.total),
        skipped=[group.name for group in layout.groups if is_skipped(hardened.model, group)],
        patterns=head_patterns(layout),
    )


def sizes_of(module: PruningModule, hardened: Hardened, made: Compacted, *, dense: Path | None, out: Path) -> Sizes:
    """How big the models are.

    Args:
        module: The task and the strategy together.
        hardened: The hardened model.
        made: The compact model.
        dense: Folder of the dense model, or `None`.
        out: Folder of the compact one.
    """
    layout = module.layout
    assert layout is not None
    return Sizes(
        parameters={
            "dense": measure.parameters(hardened.model, layout),
            "masked": measure.parameters(hardened.model, layout, nonzero=True),
            "compact": measure.parameters(made.model, layout),
        },
        vocabulary=made.vocabulary,
        dtype=str(made.model.dtype).removeprefix("torch."),
        bytes_on_disk={
            "dense": None if dense is None else measure.bytes_on_disk(dense),
            "compact": measure.bytes_on_disk(out),
        },
    )


def speed_of(
    dense: PreTrainedModel, made: Compacted, *, also: tuple[int, int] | None
) -> tuple[Speed, PortableCost | None]:
    """Latency and FLOPs of a model of the dense shapes and of the compact one; and what padding it costs, if it was.

    Args:
        dense: The model of the dense shapes.
        made: The compact one.
        also: Rows and tokens of a shape to measure besides the usual ones.
    """
    rank_zero_info("Measuring dense and compact latency side by side.")
    pair: dict[str, nn.Module] = {"dense": dense, "compact": made.model}
    if made.padded is not None:
        nn.Module.to(made.padded.uneven, made.model.device)
        pair["uneven"] = made.padded.uneven
    make_inputs = made.task.example_inputs  # its tokens are among the dense model's
    asked = [*measure.DEFAULT_SHAPES, *([] if also is None else [also])]
    latency = measure.latency(pair, make_inputs, list(dict.fromkeys(measure.fitting(made.model, asked))))
    if (generate := made.task.example_generation(GENERATED_TOKENS)) is not None:
        shapes = measure.fitting(made.model, measure.DEFAULT_SHAPES)
        for name, times in measure.latency(pair, make_inputs, shapes, call=generate).items():
            latency[name] |= {f"{shape}+{GENERATED_TOKENS}": time for shape, time in times.items()}
    (flops_shape,) = measure.fitting(made.model, [measure.FLOPS_SHAPE])
    inputs = make_inputs(*flops_shape)
    flops = {name: measure.flops(model, inputs) for name, model in pair.items()}
    latency_ms = {name: measure.median_ms(times) for name, times in latency.items()}
    cost = None
    if made.padded is not None:
        cost = PortableCost(
            config={name: [before, now] for name, (before, now) in made.padded.changes.items()},
            parameters=measure.parameters(made.padded.uneven, PrunableLayout.of(made.padded.uneven))["all"],
            flops=flops["uneven"],
            latency_ms=latency_ms["uneven"],
            speedup=measure.speedup(latency["dense"], latency["uneven"]),
        )
    speed = Speed(
        flops=flops,
        flops_shape=measure.shape_name(*flops_shape),
        latency_ms=latency_ms,
        speedup=measure.speedup(latency["dense"], latency["compact"]),
        speedup_interval=measure.speedup_interval(latency["dense"], latency["compact"]),
    )
    return speed, cost


def differences_of(notes: Notes) -> Differences:
    """How far logits differ that are to be equal.

    Args:
        notes: Where the comparisons were kept.
    """
    return Differences(
        absolute={name: notes.kept.get(name, {}).get("absolute") for name in EQUIVALENCES},
        relative={name: notes.kept.get(name, {}).get("relative") for name in EQUIVALENCES},
    )


def shape_of(snap: dict[str, Any] | None) -> tuple[int, int] | None:
    """Rows and tokens that a target in time is meant for.

    Args:
        snap: The last correction of the masks.
    """
    shape = None if snap is None else snap.get("shape")  # a run stopped under an earlier version may not say
    if shape is None:
        return None
    rows, tokens = map(int, shape.split("x"))
    return rows, tokens


def snap_record(snap: dict[str, Any] | None, metrics: dict[str, float]) -> Snap | None:
    """The correction of the masks as a report has it; masks that did not change have the same metrics before.

    Args:
        snap: The last correction of the masks.
        metrics: Of the masked model.
    """
    return None if snap is None else cast(Snap, {"metrics_before": metrics, "shape": None, **snap})
