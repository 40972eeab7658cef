"""Callbacks of others in a run that prunes: those that undo it are refused, those that ignore it are warned of."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.swa_utils import AveragedModel

from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.training.kept_checkpoints import PrunedCheckpoint, is_pruned
from bplightning.training.pruned_early_stopping import PrunedEarlyStopping

FINDERS = {
    LearningRateFinder: ("lr_find", "--model.learning_rate"),
    BatchSizeFinder: ("scale_batch_size", "--task.batch_size"),
}
"""Lightning's finders: the method of its Tuner that does the same, and the option for what it finds."""


def require_no_rivals(trainer: Trainer, strategy: PruningStrategy) -> None:
    """Refuse callbacks that write averages over weights, scores and masks, or prune by masks of their own.

    Args:
        trainer: The trainer, with the callbacks.
        strategy: The strategy that prunes.

    Raises:
        UserError: There is one.
    """
    if type(strategy).attach is PruningStrategy.attach:  # it has no masks
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelPruning):
            raise UserError(
                f"{type(callback).__name__} prunes by masks of its own, in place of the weights that "
                f"{type(strategy).__name__} masks: leave it out, or train without bplightning and call "
                "bplightning.compact afterwards."
            )
        averages = isinstance(callback, WeightAveraging | StochasticWeightAveraging)
        if averages or any(isinstance(value, AveragedModel) for value in vars(callback).values()):
            raise UserError(
                f"{type(callback).__name__} averages masks and scores as if they were weights, so the run would not "
                "end at its target: leave it out here, and average when you fine-tune the compact model."
            )


def require_no_finder(trainer: Trainer) -> None:
    """Refuse callbacks that change settings which a run records, and would change them again when it is resumed.

    Args:
        trainer: The trainer, with the callbacks.

    Raises:
        UserError: There is one.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, (method, option) in FINDERS.items():
            if isinstance(callback, kind):
                raise UserError(
                    f"{type(callback).__name__} changes a setting that the run records, and would do it again when the "
                    f"run is resumed: call Lightning's Tuner(trainer).{method}(module, datamodule=task) once before, "
                    f"with a PruningModule, and give what it finds as {option}."
                )


def warn_of_unpruned_choices(trainer: Trainer) -> None:
    """Warn about callbacks that ignore whether the strategy has reached its target.

    Args:
        trainer: The trainer, when training begins.
    """
    if is_pruned(trainer):
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if isinstance(callback, EarlyStopping) and not isinstance(callback, PrunedEarlyStopping):
            rank_zero_warn(
                f"{name} may stop this run before it is fully pruned: use bplightning.training.PrunedEarlyStopping "
                "instead, which only counts validations after that."
            )
        elif isinstance(callback, ModelCheckpoint) and not isinstance(callback, PrunedCheckpoint) and callback.monitor:
            rank_zero_warn(
                f"{name}(monitor={callback.monitor!r}) may choose a best model that is not fully pruned: use "
                "bplightning.training.PrunedCheckpoint instead."
            )


def ended_early(strategy: PruningStrategy, *, step: int, total: int) -> str:
    """The warning of a run that has ended before the strategy reached its target; waits for the device.

    Args:
        strategy: The strategy.
        step: Optimizer steps taken.
        total: Optimizer steps of the whole run.
    """
    density = strategy.density()
    left = f", and the density is {float(density['total']):.2f}" if density else ""
    return (
        f"training ended at optimizer step {step} of {total}, before {type(strategy).__name__} reached its target{left}"
        ": the model is not fully pruned. Resume from the last checkpoint, or train for all steps."
    )
