"""Prunes in the transformers `Trainer`: a callback that says how, and the Trainer's part of it.

    trainer = PruningTrainer(model=model, args=..., train_dataset=..., callbacks=[PruningTrainerCallback(strategy)])
    trainer.train()

A callback of transformers can change neither the gradients before they are clipped nor the optimizer before its
checkpoint is read; a Trainer can, by the two methods that `PruningTrainerMixin` overrides as transformers invites to.
For another Trainer than the plain one: ``class MyTrainer(PruningTrainerMixin, Seq2SeqTrainer): ...``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.errors import UserError
from bplightning.integrations.attachment import Attached, Attachment


class PruningTrainerCallback(Attached, TrainerCallback):
    """Prunes the Trainer's model; the Trainer must be a `PruningTrainer`, or another with `PruningTrainerMixin`.

    The strategy becomes a module of the model, ``pruning_strategy``: so its scores and masks are in the Trainer's
    checkpoints, from which ``train(resume_from_checkpoint=True)`` goes on. The schedule counts in the Trainer's own
    learning-rate warm-up (`warmup_steps`).

    Args:
        strategy: How to prune.
    """

    not_yet = "give the callback to a PruningTrainer, and train"

    def __init__(self, strategy: PruningStrategy) -> None:
        self.strategy = strategy
        self.joined = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Install the masks, before an optimizer exists and before a checkpoint is read.

        Raises:
            UserError: The model is none of transformers', or is trained in a way by which no process has whole weights.
        """
        ways = {"FSDP": bool(args.fsdp), "DeepSpeed": bool(args.deepspeed), "DataParallel": args.n_gpu > 1}
        for way, chosen in ways.items():
            if chosen:
                raise UserError(
                    f"the Trainer would train with {way}, by which a process may hold parts or copies of weights, and "
                    "masks need the weights themselves: train on one device, or with torchrun, which makes it DDP."
                )
        model = kwargs["model"]
        if not isinstance(model, PreTrainedModel):
            raise UserError(f"the Trainer's model is a {type(model).__name__}; only transformers models can be pruned.")
        self._attachment = Attachment(self.strategy, model, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance to where training begins, or goes on."""
        if not self.joined:
            raise UserError(
                "PruningTrainerCallback is in a Trainer that would train no scores and add no penalty: take "
                "bplightning.integrations.transformers_trainer.PruningTrainer, or put PruningTrainerMixin first "
                "in your class."
            )
        self._advance(args, state, step=state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at gradients while they are there, and advance; the Trainer has not counted the step yet."""
        self.strategy.after_optimizer_step()
        self._advance(args, state, step=state.global_step + 1)

    def _advance(self, args: TrainingArguments, state: TrainerState, *, step: int) -> None:
        total = state.max_steps
        self.strategy.advance(Progress(step, total, warmup_steps=args.get_warmup_steps(total)))


if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class PruningTrainerMixin(_Base):
    """What a Trainer does for its `PruningTrainerCallback`: write it before the Trainer's class among the bases."""

    @property
    def pruning(self) -> PruningTrainerCallback:
        """The callback.

        Raises:
            UserError: There is not exactly one.
        """
        found = [each for each in self.callback_handler.callbacks if isinstance(each, PruningTrainerCallback)]
        if len(found) != 1:
            raise UserError(
                f"{type(self).__name__} has {len(found) or 'no'} PruningTrainerCallback, and needs one: give it by "
                "callbacks=[PruningTrainerCallback(strategy)]."
            )
        return found[0]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As ever, once the strategy's groups are in the optimizer: they are scheduled with the others."""
        made = [] if self.lr_scheduler is None else [self.lr_scheduler]  # by the user
        self.pruning.attachment.join(self.optimizer, total_steps=num_training_steps, schedulers=made)
        self.pruning.joined = True
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As ever; after the last batch of an optimizer step the penalty's gradient is added, scaled as the loss is."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            self.pruning.attachment.add_penalty(*([] if scaler is None else [scaler.scale]))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Density by role beside the loss."""
        if "loss" in logs:
            logs = logs | {f"density/{role}": float(value) for role, value in self.pruning.strategy.density().items()}
        super().log(logs, start_time)


class PruningTrainer(PruningTrainerMixin, Trainer):
    """The transformers `Trainer`, which prunes as its `PruningTrainerCallback` says."""
