"""Pruning in the transformers `Trainer`: a callback with the strategy, and a mixin for the Trainer.

    trainer = PruningTrainer(model=model, args=..., train_dataset=..., callbacks=[PruningTrainerCallback(strategy)])
    trainer.train()

A callback of transformers can change neither the gradients before they are clipped, nor the optimizer before its
checkpoint is read, nor what is in a checkpoint and which one is the best; a Trainer can, in the methods that
`PruningTrainerMixin` overrides. For other Trainers: ``class MyTrainer(PruningTrainerMixin, Seq2SeqTrainer): ...``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.errors import UserError
from bplightning.integrations.attachment import OWNED_AS, Attached, Attachment
from bplightning.training.other_callbacks import ended_early

logger = logging.get_logger("transformers.trainer")


class PruningTrainerCallback(Attached, TrainerCallback):
    """Prunes the Trainer's model; the Trainer must be a `PruningTrainer`, or another with `PruningTrainerMixin`.

    The strategy becomes a module of the model, ``pruning_strategy``. The Trainer's checkpoints are ordinary folders of
    the pruned model, with zeros inside; scores, masks and the weights under them are in each one's
    ``pruning_state.pt``, from which ``train(resume_from_checkpoint=True)`` resumes. The schedule uses the Trainer's
    own learning-rate warm-up (`warmup_steps`).

    Args:
        strategy: The pruning strategy.
    """

    not_yet = "give the callback to a PruningTrainer, and train"

    def __init__(self, strategy: PruningStrategy) -> None:
        self.strategy = strategy
        self.joined = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Install the masks, before an optimizer exists and before a checkpoint is read.

        Raises:
            UserError: The model is not from transformers, or is trained so that no process has whole weights.
        """
        ways = {"FSDP": bool(args.fsdp), "DeepSpeed": bool(args.deepspeed), "DataParallel": args.n_gpu > 1}
        for way, chosen in ways.items():
            if chosen:
                raise UserError(
                    f"the Trainer would train with {way}, where a process may hold parts or copies of weights, but "
                    "masks need the weights themselves: train on one device, or with torchrun, which uses DDP."
                )
        model = kwargs["model"]
        if not isinstance(model, PreTrainedModel):
            raise UserError(f"the Trainer's model is a {type(model).__name__}; only transformers models can be pruned.")
        self._attachment = Attachment(self.strategy, model, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the strategy measure what it must, and advance to the step where training begins or resumes."""
        if not self.joined:
            raise UserError(
                "PruningTrainerCallback is in a Trainer that would train no scores and add no penalty: use "
                "bplightning.integrations.transformers_trainer.PruningTrainer, or put PruningTrainerMixin first "
                "in your class."
            )
        self.attachment.prepare()
        self._advance(args, state, step=state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call the strategy's hook while gradients exist, and advance; the Trainer has not counted the step yet."""
        self.strategy.after_optimizer_step()
        self._advance(args, state, step=state.global_step + 1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn of a run that has ended before the strategy reached its target."""
        if not self.target_reached(args, state):
            logger.warning(ended_early(self.strategy, step=state.global_step, total=state.max_steps))

    def target_reached(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the model is pruned as far as it is meant to be.

        Args:
            args: The Trainer's.
            state: The Trainer's.
        """
        return self.strategy.target_reached(self._progress(args, state, step=state.global_step))

    def _advance(self, args: TrainingArguments, state: TrainerState, *, step: int) -> None:
        self.strategy.advance(self._progress(args, state, step=step))

    def _progress(self, args: TrainingArguments, state: TrainerState, *, step: int) -> Progress:
        total = state.max_steps
        return Progress(step, total, warmup_steps=args.get_warmup_steps(total))


if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class PruningTrainerMixin(_Base):
    """The part of `PruningTrainerCallback` that a Trainer must do; list it before the Trainer's class in the bases."""

    @property
    def pruning(self) -> PruningTrainerCallback:
        """The callback.

        Raises:
            UserError: There is not exactly one.
        """
        found = [each for each in self.callback_handler.callbacks if isinstance(each, PruningTrainerCallback)]
        if len(found) != 1:
            raise UserError(
                f"{type(self).__name__} has {len(found) or 'no'} PruningTrainerCallback, but needs one: give "
                "callbacks=[PruningTrainerCallback(strategy)]."
            )
        return found[0]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As usual, after the strategy's groups are added to the optimizer, so that they are scheduled too."""
        made = [] if self.lr_scheduler is None else [self.lr_scheduler]  # by the user
        self.pruning.attachment.join(self.optimizer, total_steps=num_training_steps, schedulers=made)
        self.pruning.joined = True
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As usual; after the last batch of a step the penalty's gradient is added, scaled as the loss is."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            self.pruning.attachment.add_penalty(*([] if scaler is None else [scaler.scale]))
        return loss

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As usual, the pruned model; in a checkpoint also what training needs to resume."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self.args.should_save:
            self.pruning.attachment.save_state(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.pruning.attachment.load_state(Path(resume_from_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As usual, but for the strategy's own state, which is read afterwards."""
        missing = [name for name in load_result.missing_keys if not name.startswith(f"{OWNED_AS}.")]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    # -- the best model ------------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As usual, but none is the best before the target is reached; EarlyStoppingCallback waits for that, too."""
        if not self.pruning.target_reached(self.args, self.state):
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.pruning.attachment.load_state(Path(str(self.state.best_model_checkpoint)))

    # -- logs ----------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the density by role along with the loss."""
        if "loss" in logs:
            logs = logs | {f"density/{role}": float(value) for role, value in self.pruning.strategy.density().items()}
        super().log(logs, start_time)


class PruningTrainer(PruningTrainerMixin, Trainer):
    """The transformers `Trainer`, which prunes with its `PruningTrainerCallback`."""
