"""What some strategies can do and most need not: each capability is a base class to inherit from.

The contract of all strategies (`bplightning.contracts.strategy`) has the hooks that every training loop calls. What few
need is here, in one base each, with the hooks that belong to it and when they are called::

    class MyStrategy(ScheduledStrategy, OneShot):  # `prune` takes it, too

| base | what a strategy with it does |
|---|---|
| `OneShot` | prunes a model that is trained already, in one go: the verb `prune` takes it |
| `Staged` | prunes by data while a model is trained, at steps that it names, and leaves a model after each |
| `Prepared` | measures something on the device before the first step |
| `LearnsFromTeacher` | has a loss of its own on the teacher's layers |
| `Steered` | lands on a target by a last correction of the masks, which a report tells of |
| `Advising` | tells a user early of a run that will not give what it is meant to |

Core code does not look at a strategy's type. It asks the strategy, with `PruningStrategy.capability`::

    staged = strategy.capability(Staged)
    if staged is not None:
        name = staged.ready(progress)

The answer is the strategy itself where its class inherits the base, else `None`; so one ``if`` is all that a capability
costs the core, and no class flag says who has it. (`OneShot.by_training` says something else: whether a one-shot
strategy also prunes in training.) The strategy may answer otherwise: one that is set not to learn from a teacher
answers `None`, and one that wraps another hands the question on. The contract itself knows none of the bases, so a
plugin and a callback may agree on one of their own.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from bplightning.contracts.strategy import Progress, PruningStrategy


class OneShot(PruningStrategy, ABC):
    """Prunes a model that is trained already, without training it further: the verb `prune` takes it.

    Its life is then `attach`, `Prepared.prepare` where it has that, `calibrate`, one `advance` to the end, `harden`.
    Scores that learn in training cannot do so.

    Attributes:
        by_training: Whether it also prunes a model while that is trained; if not, `fit` refuses it.
    """

    by_training: ClassVar[bool] = False

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[dict[str, Tensor]],
        loss_fn: Callable[[Any, dict[str, Tensor]], Tensor],
    ) -> None:
        """Learn from data what to prune, and prune by it if need be; by default nothing, where weights alone say it.

        Called once where nothing is trained; in training when `Staged.wants_calibration` asks for it. All ranks see the
        same batches, and have the first one's weights and masks afterwards.

        Args:
            model: The model with this strategy attached, in evaluation mode.
            batches: Batches of the training set, each what the model's ``forward`` takes; they can be gone through
                any number of times, and are the same each time.
            loss_fn: From the model's outputs and the batch to a scalar, the mean over the batch.
        """

    def examples_at_once(self) -> int | None:
        """How many examples `calibrate` is to see where nothing is trained and the user gives no number.

        Called once, before the model is read.

        Returns:
            1 or more; `None` for as many as are usual.

        Raises:
            UserError: With its settings it prunes more than once, for which there must be training between.
        """
        return None


class Staged(OneShot):
    """Prunes by data while a model is trained, at one step or at several, and may leave a model after each stage.

    Whoever trains must ask `ready` and then `wants_calibration` after each `advance`; the integrations into loops of
    others do not, and refuse it. `prune` takes it as it takes every `OneShot`; where its settings do not allow that,
    `examples_at_once` refuses.
    """

    by_training: ClassVar[bool] = True

    @abstractmethod
    def wants_calibration(self, progress: Progress) -> int:
        """How many examples `calibrate` is to see now, before the next optimizer step; 0 for none.

        Called after each `advance`. What was done must be in the ``state_dict``, so that a resumed run does not do it
        again.

        Args:
            progress: Where training stands, in optimizer steps.
        """

    def ready(self, progress: Progress) -> str | None:
        """The name of a model that is whole as the network now is, to be kept along with the one at the end.

        Called after each `advance`, before `wants_calibration`, which begins the next stage.

        Args:
            progress: Where training stands, in optimizer steps.

        Returns:
            A name that suits a folder, such as ``"1.5x"``; `None` at most steps.
        """
        return None


class Prepared(PruningStrategy, ABC):
    """Finds out on the device, before anything is pruned, what takes too long for `attach`, such as times of layers."""

    @abstractmethod
    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        """Find it out.

        Called once when training begins, on all ranks, before the first `advance` and after a checkpoint was read; by
        `prune` before `calibrate`.

        Args:
            dense: Gives a copy of the model as `harden` would leave it, on the device that trains.
        """


class LearnsFromTeacher(PruningStrategy, ABC):
    """Adds a loss of its own on the hidden states of a teacher (`distillation.teacher`); nothing without one."""

    def meet_teacher(self, teacher: nn.Module) -> None:
        """Refuse a teacher that `layer_loss` can make nothing of; called once before training, where there is one.

        Args:
            teacher: The teacher.
        """

    @abstractmethod
    def layer_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BL: Tensor | None) -> Tensor:
        """The scalar that is added to the loss as it is.

        Called for each batch of training, after the task's loss.

        Args:
            student: Hidden states ``(B, L, H)`` of the embeddings and after each layer.
            teacher: The teacher's.
            mask_BL: 1 where a token is, 0 where padding is; `None` for tokens throughout.
        """


class Steered(PruningStrategy, ABC):
    """Is steered to a target, and corrects its masks once at the end of the schedule to land on it."""

    @abstractmethod
    def snap(self) -> dict[str, Any] | None:
        """What that correction did; called after training, and may wait for the device.

        Returns:
            ``kind`` of target, ``target``, the value asked for, ``before`` and ``after``, the values before and after
            the correction, ``changed``, how many entries of all grids it changed, and ``shape``, the rows and tokens
            ``"BxL"`` of a target in time, else `None`: a report measures the speed-up there. `None` where nothing was
            corrected.
        """

    @abstractmethod
    def put_masks(self, *, before_snap: bool) -> None:
        """Set the masks to those before the correction, or to those after it.

        Called after training, any number of times.

        Args:
            before_snap: Which of both.
        """


class Advising(PruningStrategy, ABC):
    """Tells a user early of a run that will not give what it is meant to.

    Attributes:
        collapse_remedies: Which of its own settings help where nothing is left of a layer before pruning is done, such
            as ``"a greater strategy.window.initial_warmup"``; the warning of that names them.
    """

    collapse_remedies: ClassVar[tuple[str, ...]] = ()

    def advice(self, progress: Progress) -> list[str]:
        """What a user should know at this moment.

        Called when training begins and at each validation that is part of it; it may wait for the device.

        Args:
            progress: Where training stands, in optimizer steps.

        Returns:
            A line each: what is wrong, by which numbers, and what to do; a line that was told once is not told again.
        """
        return []


CAPABILITIES: tuple[type[PruningStrategy], ...] = (OneShot, Staged, Prepared, LearnsFromTeacher, Steered, Advising)
"""All of them."""


def hooks_of(kind: type[PruningStrategy]) -> list[str]:
    """Names of the hooks that a capability itself brings.

    Args:
        kind: One of `CAPABILITIES`.

    >>> hooks_of(Staged)
    ['wants_calibration', 'ready']
    """
    return [name for name, value in vars(kind).items() if inspect.isfunction(value)]
