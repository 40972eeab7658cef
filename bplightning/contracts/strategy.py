"""The strategy contract: how a network is pruned.

A strategy is a `torch.nn.Module`, so whatever it learns (scores) or remembers (the step) is in its ``state_dict`` and a
resumed run is the run that was interrupted. Every hook defaults to nothing: a strategy overrides only what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bplightning.compaction.compact_config import require_compaction
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask, install_mask, remove_masks


@dataclass(frozen=True)
class Progress:
    """Where training stands, in optimizer steps.

    Attributes:
        step: Optimizer steps taken so far; 0 before the first.
        total_steps: Optimizer steps of the whole run.
        warmup_steps: Optimizer steps of the learning-rate warm-up (``W`` in the papers).
    """

    step: int
    total_steps: int
    warmup_steps: int


class PruningStrategy(nn.Module):
    """How a network is pruned: granularity by role, where scores come from, schedule, penalty.

    The life of a strategy is `attach`, `prepare`, then for every optimizer step `advance`, a forward pass, `penalty`
    added to the loss, and `after_optimizer_step`; at the end `harden`. Where nothing is trained (the verb `prune`) it
    is `attach`, `prepare`, `calibrate`, one `advance` to the end, `harden`. It knows neither the task nor Lightning.

    Attributes:
        by_training: Whether it prunes a model while that is trained.
        without_training: Whether it prunes a model that is not trained any more; scores that learn in training cannot.
        calibrates: Whether it calls for data while a model is trained: whoever trains must then ask
            `wants_calibration` at each step.
        learns_from_layers: Whether `layer_loss` wants hidden states of student and teacher.
        collapse_remedies: What helps, of its own settings, where nothing is left of a layer while pruning goes on, such
            as ``"a greater strategy.initial_warmup"``; a warning says it.
        puts_back: Whether units that were removed still are what they were, so that `Alignment` can put some back. They
            are not where their weights are gone, or where what stays has been changed to make up for them.
    """

    by_training: ClassVar[bool] = True
    without_training: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    collapse_remedies: ClassVar[tuple[str, ...]] = ()
    learns_from_layers: bool = False
    puts_back: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.masks = nn.ModuleDict()

    # -- hooks a strategy overrides ------------------------------------------------------------------------------------

    def attach(self, layout: PrunableLayout) -> None:
        """Make the masks and install them on the model of `layout`; called once, before optimizers exist.

        Args:
            layout: What can be pruned of the model.
        """

    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        """Find out what cannot be known where nothing is trained, such as times on the device.

        Called once when training begins, on all ranks, before the first `advance` and after a checkpoint was read.

        Args:
            dense: Gives a copy of the model as `harden` would leave it, on the device that trains.
        """

    def advance(self, progress: Progress) -> None:
        """Set what masks keep, score threshold or penalty weight for the optimizer step that comes next.

        Called once before training and once after each optimizer step, and again with the same step when a run is
        resumed: it must then give the same.

        Args:
            progress: Where training stands.
        """

    def target_reached(self, progress: Progress) -> bool:
        """Whether the network is pruned as far as it is meant to be; a checkpoint is "best" only from then on.

        Args:
            progress: Where training stands.
        """
        return True

    def penalty(self) -> Tensor | None:
        """The scalar added to the task's loss, or `None` for none."""
        return None

    def meet_teacher(self, teacher: nn.Module) -> None:
        """Refuse a teacher that `layer_loss` can make nothing of; called before training, where there is one.

        Args:
            teacher: The teacher.
        """

    def layer_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BL: Tensor | None) -> Tensor | None:
        """What to learn from a teacher's layers, a scalar added to the loss as it is, or `None` for nothing.

        Args:
            student: Hidden states ``(B, L, H)`` of the embeddings and after each layer.
            teacher: The teacher's.
            mask_BL: 1 where a token is, 0 where padding is; `None` for tokens throughout.
        """
        return None

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        """The strategy's own optimizer groups, for example scores with their own learning rate.

        Args:
            total_steps: Optimizer steps of the whole run.

        Returns:
            Groups as `torch.optim` takes them; each parameter of the strategy in exactly one.
        """
        return []

    def after_optimizer_step(self) -> None:
        """Called after each optimizer step, before the next `advance`, for example to clamp scores.

        Gradients are still there (`Member.grad`): those of the step, summed over accumulated batches, averaged over
        ranks, no longer scaled. Of a step that a 16-bit scaler skipped they are infinite or NaN.
        """

    def ready(self, progress: Progress) -> str | None:
        """The name of a model that is whole as the network now is, to be kept beside the one that training ends with.

        Asked after each `advance`, before `wants_calibration`: what goes on from here goes on without it.

        Args:
            progress: Where training stands.

        Returns:
            A name that suits a folder, such as ``"1.5x"``; `None` for most steps.
        """
        return None

    def wants_calibration(self, progress: Progress) -> int:
        """How many examples `calibrate` is to see now, before the next step; 0 for none.

        Asked after each `advance`. What was done stands in the ``state_dict``, so that a resumed run does not do it
        again.

        Args:
            progress: Where training stands.
        """
        return 0

    def examples_at_once(self) -> int | None:
        """How many examples `calibrate` is to see where nothing is trained and the user says no number.

        Returns:
            1 or more; `None` for as many as are usual.

        Raises:
            UserError: With its settings it prunes more than once, for which there must be training between.
        """
        return None

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[dict[str, Tensor]],
        loss_fn: Callable[[Any, dict[str, Tensor]], Tensor],
    ) -> None:
        """Learn from data what cannot be learned from gradients of training, and prune by it if need be.

        Called when `wants_calibration` says so, and of a strategy that prunes without training once, after `prepare`.
        All ranks see the same batches, and have the first one's weights and masks afterwards.

        Args:
            model: The model with this strategy attached, in evaluation mode.
            batches: Batches of the training set, each what the model's ``forward`` takes; they can be gone through
                any number of times, and are the same each time.
            loss_fn: From the model's outputs and the batch to a scalar, the mean over the batch.
        """

    def metrics(self) -> dict[str, Tensor | float]:
        """What to log beside density by role, name to scalar, for example ``{"score_threshold": 0.07}``."""
        return {}

    def advice(self, progress: Progress) -> list[str]:
        """What a user should know of this moment, to stop a run that will not give what it is meant to.

        Called when training begins and at each validation that is part of it; it may wait for the device.

        Args:
            progress: Where training stands.

        Returns:
            A line each: what is wrong, by which numbers, and what to do; the same line is said once.
        """
        return []

    def snap(self) -> dict[str, Any] | None:
        """What the last correction of the masks did, of a strategy that is steered to a target; by default `None`.

        Returns:
            ``kind`` of target, ``target``, the value asked for, ``before`` and ``after``, the values before and after
            the correction, ``changed``, how many entries of all grids it changed, and ``shape``, the rows and tokens
            ``"BxL"`` of a target in time, else `None`: a report measures the speed-up there.
        """
        return None

    def put_masks(self, *, before_snap: bool) -> None:
        """Set the masks to those before the correction that `snap` tells of, or to those after it.

        Args:
            before_snap: Which of both.
        """

    # -- what all strategies share -------------------------------------------------------------------------------------

    def add_mask(self, name: str, mask: Mask, layout: PrunableLayout) -> None:
        """Register `mask` under `name` (dots become dashes) and install it on the members it covers."""
        device = mask.covers[0].member.weight(layout.model).device
        self.masks[name.replace(".", "-")] = mask.to(device)
        install_mask(layout.model, mask)

    @property
    def all_masks(self) -> list[Mask]:
        """The masks, in the order they were made."""
        return cast(list[Mask], list(self.masks.values()))

    @torch.no_grad()
    def density(self) -> dict[str, Tensor]:
        """Fraction of masked weights kept, by role, as 0-d tensors on the device (no host synchronisation).

        Returns:
            Role (``"attention"``, ``"feed_forward"``, ...) to fraction; ``"total"`` over all. Empty without masks.
        """
        kept: dict[str, list[Tensor]] = {}
        total: dict[str, int] = {}
        for mask in self.all_masks:
            kept.setdefault(mask.role, []).append(mask.kept_weights())
            total[mask.role] = total.get(mask.role, 0) + mask.total_weights
        sums = {role: torch.stack(values).sum() for role, values in kept.items()}
        density = {role: sums[role] / total[role] for role in sums}
        if density:
            density["total"] = torch.stack(list(sums.values())).sum() / sum(total.values())
        return density

    def harden(self, layout: PrunableLayout) -> None:
        """Write the masks into the weights as zeros, and take the masks away."""
        remove_masks(layout.model)
        for mask in self.all_masks:
            mask.clear_idle(layout.model)
        require_compaction(layout)
        self.masks = nn.ModuleDict()
