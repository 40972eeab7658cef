"""Prunes the transformers model inside any LightningModule."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedModel

from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.errors import UserError
from bplightning.integrations.attachment import Attached, Attachment
from bplightning.training.module import check_warmup, progress_of
from bplightning.training.other_callbacks import ended_early, require_no_rivals, warn_of_unpruned_choices
from bplightning.training.ranks import require_agreement, require_supported


class PruningCallback(Attached, Callback):
    """Prunes the transformers model inside a LightningModule while that learns whatever it learns.

    The strategy becomes a module of the LightningModule, ``pruning_strategy``: so its scores and masks are on the right
    device, and in the checkpoints, from which ``Trainer.fit(ckpt_path=...)`` resumes. Its parameter groups join the
    module's optimizer, whose schedule they follow. The penalty's gradient is added to those of the loss before each
    optimizer step, and before they are clipped; the loss that the module logs is its own.

    Args:
        strategy: The pruning strategy.
        model: Name of the model in the LightningModule, such as ``"student"`` or ``"net.encoder"``; by default it is
            the only transformers model there.
        warmup: Learning-rate warm-up that the strategy's schedule counts in (the papers' W): a fraction of all
            optimizer steps if below 1, else a number of optimizer steps. It changes no learning rate.

    Example:
        ``callback = PruningCallback(Hybrid(Target(density=0.25)))``, then ``Trainer(callbacks=[callback]).fit(module)``
        and ``callback.save("compact", tokenizer)``.
    """

    not_yet = "give the callback to a Trainer, and call its `fit` first"

    def __init__(self, strategy: PruningStrategy, model: str | None = None, warmup: float = 0.05) -> None:
        check_warmup(warmup)
        self.strategy = strategy
        self.path = model
        self.warmup = warmup
        self._step = 0

    # -- before training -----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let masks be installed as soon as the module has its model, before a checkpoint is read."""
        require_supported(trainer)
        require_no_rivals(trainer, self.strategy)
        if self._attachment is not None:
            if self._attachment.owner is not pl_module:
                raise UserError("this PruningCallback has pruned another module: make one for each module.")
            return
        configure = pl_module.configure_model

        def configure_and_attach() -> None:
            # Callbacks have no hook between a complete module and its checkpoint.
            del pl_module.configure_model
            configure()
            self._attachment = Attachment(self.strategy, find_model(pl_module, self.path), pl_module)

        pl_module.configure_model = configure_and_attach  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the optimizer, before a checkpoint of it is read, and let the strategy measure what it must."""
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers, but PruningCallback needs "
                "exactly one: prune such a module with the strategy's own calls, as in examples/in_a_bare_loop.py."
            )
        schedulers = [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
        total_steps = self._progress(trainer, 0).total_steps
        self.attachment.join(trainer.optimizers[0], total_steps=total_steps, schedulers=schedulers)
        self.attachment.prepare()

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance to the step where training begins or resumes."""
        self._step = trainer.global_step
        self.strategy.advance(self._progress(trainer, self._step))
        warn_of_unpruned_choices(trainer)

    def target_reached(self) -> bool:
        """Whether the model is pruned as far as it is meant to be; `PrunedCheckpoint` and others ask for it."""
        module: Any = self.attachment.owner
        trainer: Trainer = module.trainer
        return self.strategy.target_reached(self._progress(trainer, trainer.global_step))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add the penalty's gradient, and log; gradients are averaged over ranks by now, and no longer scaled."""
        self.attachment.add_penalty()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (trainer.global_step + 1) % every == 0:
            values = {f"density/{role}": value for role, value in self.strategy.density().items()}
            pl_module.log_dict({**values, **self.strategy.metrics()}, on_step=True, on_epoch=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance after an optimizer step, so that validations and checkpoints have the right masks."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.strategy.after_optimizer_step()
            self.strategy.advance(self._progress(trainer, self._step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run whose ranks train different networks."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            require_agreement(trainer, self)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same before the model is compacted."""
        require_agreement(trainer, self)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a run that has ended before the strategy reached its target."""
        progress = self._progress(trainer, trainer.global_step)
        if not self.strategy.target_reached(progress):
            rank_zero_warn(ended_early(self.strategy, step=progress.step, total=progress.total_steps))

    def _progress(self, trainer: Trainer, step: int) -> Progress:
        return progress_of(trainer, step=step, warmup=self.warmup)


def find_model(module: nn.Module, path: str | None) -> PreTrainedModel:
    """The transformers model in a module.

    Args:
        module: Where to look.
        path: Its name there; `None` for the only one.

    Raises:
        UserError: There is none of that name, or not exactly one.
    """
    found: dict[str, PreTrainedModel] = {}
    for name, each in module.named_modules():
        # A model's own parts are models too.
        if isinstance(each, PreTrainedModel) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = each
    if path is not None:
        named = dict(module.named_modules()).get(path)
        if isinstance(named, PreTrainedModel):
            return named
        kind = "not there" if named is None else f"a {type(named).__name__}"
        raise UserError(
            f"model is {path!r}, which is {kind} in {type(module).__name__}: name a transformers model; there are: "
            f"{', '.join(map(repr, found)) or 'none'}."
        )
    if len(found) != 1:
        names = f" ({', '.join(map(repr, found))})" if found else ""
        remedy = "give model='NAME'" if found else "build it in __init__, setup or configure_model"
        raise UserError(
            f"{type(module).__name__} holds {len(found) or 'no'} transformers models{names}, but exactly one "
            f"is pruned: {remedy}."
        )
    return next(iter(found.values()))
