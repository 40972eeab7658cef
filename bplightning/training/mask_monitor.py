"""Messages and logs during pruning, other than losses: flipped masks, heads left, and advice."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from bplightning.compaction.survival import Survival
from bplightning.contracts.capabilities import Advising
from bplightning.contracts.strategy import PruningStrategy
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout


class MaskMonitor(Callback):
    """Logs at validations the share of mask entries that flipped since the last one, and the heads left in each layer.

    It also prints the strategy's advice, each line once. Every `PruningModule` adds it.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] | None = None
        self._said: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print advice before training begins."""
        self._advise(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, if the validation is part of training."""
        module: Any = pl_module
        strategy: PruningStrategy = module.strategy
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not strategy.all_masks:
            return
        now = [mask.kept.to("cpu", copy=True) for mask in strategy.all_masks]  # not on the GPU, to save memory
        line = ""
        if self._before is not None:
            flipped = sum(int((old ^ new).sum()) for old, new in zip(self._before, now, strict=True))
            share = flipped / sum(grid.numel() for grid in now)
            pl_module.log("val_mask_flips", share, prog_bar=True)
            line = f"{100 * share:.2f} % of the masks' entries flipped since the last validation"
        self._before = now
        heads = heads_left(module.layout, strategy)
        pl_module.log_dict({f"heads/{name}": float(count) for name, count in heads.items()})
        if heads:
            line += f"{'; ' if line else ''}heads left by layer: {' '.join(map(str, heads.values()))}"
        if line:
            rank_zero_info(f"{line[0].upper()}{line[1:]}.")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print new advice."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._advise(pl_module)

    def _advise(self, module: Any) -> None:
        advising = module.strategy.capability(Advising)
        for line in [] if advising is None else advising.advice(module.progress()):
            if line not in self._said:
                self._said.add(line)
                rank_zero_warn(line)


@torch.no_grad()
def heads_left(layout: PrunableLayout, strategy: PruningStrategy) -> dict[str, int]:
    """Name of each masked attention sub-layer to its query heads left, which go by key/value head where grouped.

    The host waits for the device.

    Args:
        layout: Layout of the masked model.
        strategy: Its strategy.
    """
    survival, kept = Survival(layout, strategy.all_masks), [mask.kept.float() for mask in strategy.all_masks]
    groups = [group for group in survival.groups if isinstance(group, AttentionGroup)]
    if not groups:
        return {}
    counts = torch.stack([survival.of(group, kept).count_nonzero() for group in groups]).tolist()
    queries = [group.heads // max(group.kv_heads, 1) for group in groups]
    return {group.name: count * each for group, count, each in zip(groups, counts, queries, strict=True)}


class TeacherWarning(Callback):
    """Warns once if the teacher scores worse than the pruned student; every `PruningModule` adds it.

    The teacher is evaluated along with the student in the first validation. For tasks that generate text this would
    take long, so nothing is compared.
    """

    def __init__(self) -> None:
        self._metric: Metric | None = None
        self._score: float | None = None
        self._said = False

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Evaluate the teacher on the student's batch."""
        module: Any = pl_module
        if self._score is not None or module.teacher is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.sanity_checking or module.task.example_generation(1) is not None:
            return
        if self._metric is None:
            self._metric = module.task.build_metric().to(module.device)
        with trainer.precision_plugin.forward_context():
            self._metric.update(module.task.evaluate_batch(module.teacher.model, batch), batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the scores."""
        module: Any = pl_module
        task = module.task
        if self._metric is not None:
            self._score = float(self._metric.compute()[task.monitor])
            self._metric = None
        own = trainer.callback_metrics.get(f"val_{task.monitor}")
        if self._score is None or own is None or self._said or module.teacher is None:
            return
        if (float(own) > self._score) if task.monitor_mode == "max" else (float(own) < self._score):
            self._said = True
            rank_zero_warn(
                f"The teacher {module.teacher_name!r} has {task.monitor} {self._score:.4g} on the validation "
                f"set, and the pruned model {float(own):.4g} at step {trainer.global_step} already: it holds the model "
                "back. Use a better teacher, or give it less weight (distillation.alpha_teacher)."
            )
