"""Ending a run with NaN or infinite values: where they began is reported, and no such checkpoint is written."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.training.kept_checkpoints import last_saved

SHORT = (torch.float16, torch.bfloat16)
"""Precisions that are too low for scores."""


def require_precise_scores(strategy: nn.Module) -> None:
    """Refuse scores in 16 bits, which would never change: a step is rounded away when added to a score near 1 or above.

    Args:
        strategy: The strategy, before optimizers are made.

    Raises:
        UserError: Its parameters have 16 bits.
    """
    short = next((value.dtype for value in strategy.parameters() if value.dtype in SHORT), None)
    if short is not None:
        raise UserError(
            f"the scores of {type(strategy).__name__} are {str(short).removeprefix('torch.')}, in which their steps "
            "are rounded away: give trainer.precision bf16-mixed or 32-true."
        )


class FiniteGuard(Callback):
    """Stops a run when loss, scores or weights are NaN or infinite; every `PruningModule` adds it.

    Loss and scores are checked in each step on CPUs, on all ranks together, since a step later one bad value is in
    every weight of all ranks. On an accelerator, where checking would make the host wait, they are checked in the steps
    that are logged. Weights are checked before validations and checkpoints.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch until its step ends."""
        self._batch = batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Forget the batch."""
        self._batch = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check before the optimizer spreads a bad value to every weight."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if loss.device.type != "cpu" and (not every or (trainer.global_step + 1) % every):
            return
        self._require_finite(trainer, pl_module, loss=loss.detach())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before a validation, which would only show a bad score."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._require_finite(trainer, pl_module, weights=True)

    def _require_finite(
        self, trainer: Trainer, module: Any, *, loss: Tensor | None = None, weights: bool = False
    ) -> None:
        # In float16 a step may overflow: a scaler then skips it and halves its scale, which starts far above 1. At a
        # scale of 1 it has skipped many steps in a row, so the loss itself is bad.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        left_to_scaler = scaler is not None and scaler.get_scale() > 1
        values = [] if loss is None or left_to_scaler else [loss]
        values += module.strategy.parameters()
        values += module.model.parameters() if weights else []
        bad = bool(values) and not all_finite(values)
        if not trainer.strategy.reduce_boolean_decision(bad, all=False):
            return
        if not bad:
            raise not_finite(trainer, what="a value", place="another rank, whose own message has more")
        what = "a weight" if loss is None else "a score" if loss.isfinite() else "the loss"
        raise not_finite(trainer, what=what, place=_place(trainer, module, self._batch))


def require_finite_parameters(trainer: Trainer, module: Any) -> None:
    """Refuse to write a checkpoint of weights or scores that are not finite.

    Raises:
        UserError: Some are not.
    """
    if not all_finite(list(module.parameters())):
        raise not_finite(trainer, what="a weight or score", place=_place(trainer, module, None))


@torch.no_grad()
def all_finite(values: list[Tensor]) -> bool:
    """Whether no value is NaN or infinite; the host waits for the device once.

    A sum is not finite if one of its terms is not, and needs no memory. Since it may also overflow, the values
    themselves are checked in that case.
    """
    sums = torch.stack([value.sum(dtype=torch.float32) for value in values if value.is_floating_point()])
    return bool(sums.isfinite().all()) or all(bool(value.isfinite().all()) for value in values)


def not_finite(trainer: Trainer, *, what: str, place: str) -> UserError:
    """The error for a value that is not finite, with its origin and remedies.

    Args:
        trainer: The trainer, for step, precision and checkpoints.
        what: The value that is not finite.
        place: Where it appeared first.
    """
    good = last_saved(trainer)
    kept = f"The last good checkpoint is kept: {good}" if good else "No checkpoint had been written yet"
    rates = ", ".join(f"{group.get('name', 'group')} {group['lr']:.3g}" for group in trainer.optimizers[0].param_groups)
    return UserError(
        f"{what} is NaN or infinite at optimizer step {trainer.global_step + 1}, first found in {place}: lower the "
        f"learning rates (now {rates}), or use another trainer.precision (now {trainer.precision}). {kept}."
    )


def _place(trainer: Trainer, module: Any, batch: Any) -> str:
    """The first of scores, weights and outputs that is not finite."""
    for name, parameter in module.strategy.named_parameters():
        if not parameter.isfinite().all():
            mask = name.removeprefix("masks.").removesuffix(".scores")
            return f"scores of mask {mask}" if name.endswith(".scores") else f"{name} of the strategy"
    for name, parameter in module.model.named_parameters():
        if not parameter.isfinite().all():
            return f"weights of {name}"
    return _first_bad_output(trainer, module, batch)


@torch.no_grad()
def _first_bad_output(trainer: Trainer, module: Any, batch: Any) -> str:
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensors = output.values() if isinstance(output, dict) else output
            for value in tensors if isinstance(tensors, (tuple, list, type({}.values()))) else (tensors,):
                if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                    found.append(name)
                    break

        return hook

    handles = [part.register_forward_hook(look(name)) for name, part in module.model.named_modules() if name]
    try:
        with trainer.precision_plugin.forward_context():  # in the precision in which it overflowed
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else "the task's loss or the strategy's penalty itself"
