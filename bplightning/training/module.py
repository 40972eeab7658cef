"""The one LightningModule: it composes a task and a strategy, and logs."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from bplightning.compaction.compact_config import record_widths
from bplightning.contracts.capabilities import Prepared, Staged
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.task import Task
from bplightning.distillation.distillation import BASELINE, Distillation, Teacher
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import freeze_masks, unfreeze_masks
from bplightning.reporting.score_history import ScoreHistory
from bplightning.training.calibration import calibrate
from bplightning.training.checkpoint_files import folder_of, require_same_weights
from bplightning.training.collapse import CollapseWarning
from bplightning.training.denormals import FlushDenormals
from bplightning.training.guards import FiniteGuard, require_finite_parameters, require_precise_scores
from bplightning.training.mask_monitor import MaskMonitor, TeacherWarning
from bplightning.training.other_callbacks import ended_early, require_no_rivals, warn_of_unpruned_choices
from bplightning.training.ranks import MasksAgree, require_supported
from bplightning.training.resuming import Resuming
from bplightning.training.simplification import Simplification, Simplifier
from bplightning.training.size_variants import keep


class PruningModule(LightningModule):
    """Fine-tunes a task's model while a strategy prunes it.

    Args:
        task: The task, with its model, data, loss and metrics.
        strategy: The pruning strategy.
        learning_rate: Learning rate of the model's weights, reached after the warm-up; it then falls linearly to 0.
        warmup: Learning-rate warm-up (the papers' W): a fraction of all optimizer steps if below 1, else a number of
            optimizer steps.
        weight_decay: Weight decay of the model's weights; biases and norms have none.
        adam_epsilon: AdamW's epsilon.
        distillation: What to learn from a teacher in addition to the task; `None` for nothing.
        simplification: Which norms and activations become simpler during training; `None` for none.
        activation_checkpointing: Whether transformers computes each layer again for the backward pass. This is slower,
            but keeps activations and masked weights of only one layer in memory at a time.
    """

    model: PreTrainedModel

    def __init__(
        self,
        task: Task,
        strategy: PruningStrategy,
        learning_rate: float = 3e-5,
        warmup: float = 0.05,
        weight_decay: float = 0.0,
        adam_epsilon: float = 1e-8,
        distillation: Distillation | None = None,
        simplification: Simplification | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise UserError(f"learning_rate is {learning_rate:g}; it must be above 0. The papers take 3e-5.")
        for name, value in (("weight_decay", weight_decay), ("adam_epsilon", adam_epsilon)):
            if not value >= 0:
                raise UserError(f"{name} is {value:g}; it must be 0 or more. The papers take 0 and 1e-8.")
        check_warmup(warmup)
        self.task = task
        self.strategy = strategy
        self.learning_rate = learning_rate
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.adam_epsilon = adam_epsilon
        self.distillation = distillation or Distillation()
        self.simplification = simplification or Simplification()
        self.activation_checkpointing = activation_checkpointing
        self.simplifier: Simplifier | None = None
        self._teacher: list[Teacher] = []  # in a list, which hides it from `state_dict` and from DDP
        self.baseline: Path | None = None
        self.metric_prefix: str | None = None
        self.layout: PrunableLayout | None = None
        self.configured = False

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks of every run: exact resuming, quick arithmetic, checks of values and ranks, and records."""
        there = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        checks = (FiniteGuard, MasksAgree, CollapseWarning, TeacherWarning)
        kinds = (Resuming, FlushDenormals, *checks, ScoreHistory, MaskMonitor)
        return [kind() for kind in kinds if kind not in there]

    def setup(self, stage: str) -> None:
        require_supported(self.trainer)
        require_no_rivals(self.trainer, self.strategy)

    def configure_model(self) -> None:
        """Build the model and install the masks, once: before optimizers exist and before a checkpoint is read."""
        if self.configured:
            return
        self.configured = True
        if not hasattr(self, "model"):
            self.model = self.task.build_model()
        if self.activation_checkpointing:
            if not self.model.supports_gradient_checkpointing:
                raise UserError(
                    f"model.activation_checkpointing is true, which transformers does not have for models of type "
                    f"{self.model.config.model_type!r}: leave it out, and take a smaller batch with "
                    "trainer.accumulate_grad_batches."
                )
            self.model.activation_checkpointing_enable()
        self.model.train()  # `from_pretrained` leaves it in evaluation mode, which Lightning would keep
        self.layout = PrunableLayout.of(self.model)
        self.strategy.attach(self.layout)
        # Each rank sets its own masks, and `MasksAgree` compares them: DDP need not send them before each forward pass.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, [f"strategy.{name}" for name, _ in self.strategy.named_buffers()]
        )
        if self.simplification.settings() is not None:
            self.simplifier = Simplifier(self.simplification, self.layout)

    def forward(self, batch: dict[str, Any]) -> Any:
        return self.model(**self.task.model_inputs(batch))

    # -- training ------------------------------------------------------------------------------------------------------

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, if there is one."""
        return self._teacher[0] if self._teacher else None

    def take_teacher(self) -> None:
        """Read the teacher, if one is configured, and check that it fits; call `configure_model` first."""
        if self.teacher_name is not None and not self._teacher:
            settings = self.distillation.with_teacher(self.teacher_name)
            self._teacher.append(Teacher(settings, self.task, self.model, self.strategy))

    @property
    def teacher_name(self) -> str | None:
        """Folder or hub name of the teacher; `baseline` stands for the dense model's folder once that is known."""
        name = self.distillation.teacher
        return str(self.baseline) if name == BASELINE and self.baseline is not None else name

    def progress(self, step: int | None = None) -> Progress:
        """Where training stands, in optimizer steps.

        Args:
            step: Optimizer steps taken; by default the trainer's count.
        """
        step = self.trainer.global_step if step is None else step
        return progress_of(self.trainer, step=step, warmup=self.warmup)

    def target_reached(self) -> bool:
        """Whether the targets of pruning and simplification are reached."""
        progress = self.progress()
        simple = self.simplifier is None or self.simplifier.target_reached(progress)
        return simple and self.strategy.target_reached(progress)

    def on_fit_start(self) -> None:
        self.take_teacher()
        for teacher in self._teacher:
            teacher.to(self.device)
        if (prepared := self.strategy.capability(Prepared)) is not None:
            prepared.prepare(self.hardened_copy)

    def on_fit_end(self) -> None:
        self._teacher.clear()
        if not self.target_reached():
            progress = self.progress()
            rank_zero_warn(ended_early(self.strategy, step=progress.step, total=progress.total_steps))

    def on_train_start(self) -> None:
        if self._tries:
            return
        self._advance(self.progress())
        warn_of_unpruned_choices(self.trainer)

    @property
    def _tries(self) -> bool:
        """Whether one of Lightning's finders tries settings: it takes the callbacks away, and restores the weights."""
        return not any(isinstance(each, Resuming) for each in self.trainer.callbacks)  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        options = {name: value for teacher in self._teacher for name, value in teacher.student_options.items()}
        outputs = self.model(**self.task.model_inputs(batch), **options)
        loss = task_loss = self.task.loss(outputs, batch)
        values: dict[str, Any] = {"task_loss": task_loss.detach()}
        for teacher in self._teacher:
            loss, decided = teacher.loss(task_loss, outputs, batch)
            values["teacher_loss"] = decided.detach()
            if teacher.experts_loss is not None:
                values["experts_loss"] = teacher.experts_loss
        penalty = self.strategy.penalty()
        if penalty is not None:
            loss = loss + penalty
            values["penalty"] = penalty.detach()
        self._log_step(values)
        return loss

    def _log_step(self, values: dict[str, Any]) -> None:
        """Log on the device; density, which is computed over all scores, only in the steps that are logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            values |= {f"density/{role}": value for role, value in self.strategy.density().items()}
            values["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        values |= self.strategy.metrics()
        if self.simplifier is not None:
            values["simplified"] = self.simplifier.amount
        self.log_dict(values, prog_bar=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Advance right after the step, so that validation and checkpoints before the next one have the right masks."""
        super().optimizer_step(*args, **kwargs)
        if self._tries:  # the schedule is of other lengths, and must not begin
            return
        self.strategy.after_optimizer_step()
        self._advance(self.progress(self.trainer.global_step + 1))

    def _advance(self, progress: Progress) -> None:
        self.strategy.advance(progress)
        if self.simplifier is not None:
            self.simplifier.advance(progress)
        if (staged := self.strategy.capability(Staged)) is None:
            return
        if (name := staged.ready(progress)) is not None:
            self._keep(name)
        if examples := staged.wants_calibration(progress):
            calibrate(self.trainer, self.task, self.model, staged, examples=examples, step=progress.step)

    def _keep(self, name: str) -> None:
        """Save the model that there would be if training ended now, and continue as if nothing had been."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run = folder_of(self.trainer)  # ranks find it together
        if self.trainer.is_global_zero:
            with isolate_rng():
                keep(self.hardened_copy(), self.task, run, name)
        self.trainer.strategy.barrier()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        require_precise_scores(self.strategy)
        progress = self.progress()
        decays = {name for name, parameter in self.model.named_parameters() if parameter.ndim > 1}
        groups: list[dict[str, Any]] = [
            {
                "params": [value for name, value in self.model.named_parameters() if (name in decays) == decayed],
                "weight_decay": self.weight_decay if decayed else 0.0,
                "name": "weights" if decayed else "no_decay",
            }
            for decayed in (True, False)
        ]
        groups += self.strategy.parameter_groups(total_steps=progress.total_steps)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, eps=self.adam_epsilon, fused=True)
        # A fused step could unscale gradients itself, so Lightning would not clip them: the scaler, if any, does that.
        optimizer._step_supports_amp_scaling = False
        schedule = get_linear_schedule_with_warmup(optimizer, progress.warmup_steps, progress.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_finite_parameters(self.trainer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        training = self.trainer.state.fn == TrainerFn.FITTING
        require_same_weights(checkpoint, self, path=self.trainer.ckpt_path, training=training)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.metric = self.task.build_metric().to(self.device)
        freeze_masks(self.model)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.metric.update(self.task.evaluate_batch(self.model, batch), batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics(self.metric_prefix or "val")

    def _log_metrics(self, prefix: str) -> None:
        unfreeze_masks(self.model)
        values = {f"{prefix}_{name}": value for name, value in self.metric.compute().items()}
        density = self.strategy.density()
        if density:
            values[f"{prefix}_density"] = density["total"]
        if density and self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            reached = self.target_reached()
            values[f"{prefix}_target_reached"] = float(reached)
            shown = ", ".join(f"{role} {value:.3f}" for role, value in density.items())
            rank_zero_info(
                f"Validated with the masks of step {self.trainer.global_step}: density {shown}; "
                f"{'the target is reached' if reached else 'pruning continues'}."
            )
        self.log_dict(values, prog_bar=True)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics(self.metric_prefix or "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return self.task.predict_batch(self.model, batch)

    # -- after training ------------------------------------------------------------------------------------------------

    def hardened_copy(self) -> PreTrainedModel:
        """A copy of the model as `harden` would leave it, in evaluation mode; the module keeps its masks."""
        parts = (self.model, self.strategy, self.layout, self.simplifier)
        model, strategy, layout, simplifier = copy.deepcopy(parts)  # together: they hold one another
        assert layout is not None
        strategy.harden(layout)
        if simplifier is not None:
            simplifier.harden()
        return model.eval()

    def harden(self) -> PreTrainedModel:
        """Write the masks into the weights as zeros, remove them, finish simplification, and return the model."""
        assert self.layout is not None
        self.strategy.harden(self.layout)
        if self.simplifier is not None and self.simplifier.harden():
            record_widths(self.model, dense=self.layout, new_biases=())  # for `save_pretrained`, whatever is saved
        return self.model


def progress_of(trainer: Trainer, *, step: int, warmup: float) -> Progress:
    """Where training stands, in optimizer steps.

    Args:
        trainer: Lightning's trainer, which knows how long it trains.
        step: Optimizer steps taken.
        warmup: Learning-rate warm-up: a fraction of all optimizer steps if below 1, else a number of optimizer steps.

    Raises:
        UserError: The trainer trains without an end, or not at all.
    """
    total = trainer.estimated_stepping_batches
    if not math.isfinite(total):
        raise UserError(
            "the run has no last step, which the pruning schedule needs: give trainer.max_steps or trainer.max_epochs."
        )
    if total < 1 or (step == 0 and 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches)):
        raise UserError(
            "the run has no optimizer step, so nothing would be trained or pruned: give trainer.max_epochs, "
            "trainer.max_steps and trainer.limit_train_batches of 1 or more."
        )
    warmup_steps = round(warmup * total) if warmup < 1 else int(warmup)
    return Progress(step=step, total_steps=int(total), warmup_steps=warmup_steps)


def check_warmup(warmup: float, *, what: str = "warmup") -> None:
    """Refuse a warm-up below 0."""
    if not warmup >= 0:
        raise UserError(f"{what} is {warmup:g}; it must be 0 or more: a fraction below 1, or optimizer steps.")


def frozen_module(
    task: Task, model: nn.Module, *, prefix: str | None, strategy: PruningStrategy | None = None
) -> PruningModule:
    """A module that only evaluates `model` on `task`, without pruning; the model may have any architecture.

    Args:
        task: The task.
        model: A dense, hardened or compact model, or a masked one with its `strategy`.
        prefix: Prefix of the metrics' names, for example ``"compact"``; `None` for Lightning's.
        strategy: Holds the model's masks, if it has any.
    """
    module = PruningModule(task, PruningStrategy() if strategy is None else strategy)
    module.model = model  # type: ignore[assignment]
    module.configured = True
    module.metric_prefix = prefix
    return module
