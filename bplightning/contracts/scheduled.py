"""What strategies that prune on a schedule share: granularity by role, the schedule, masks that may stand still."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from bplightning.contracts.capabilities import Advising
from bplightning.contracts.schedule import cubic, pruning_window
from bplightning.contracts.strategy import Progress
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import granularity_by_role, make_masks


class ScheduledStrategy(Advising, ABC):
    """Prunes more and more between two optimizer steps, the papers' cubic schedule (`bplightning.contracts.schedule`).

    A subclass says what masks keep at a point of the schedule (`prune`), and the granularity it has by default.

    Args:
        granularity: Role to granularity, where it is not `default_granularity`.
        initial_warmup: Length of training before pruning begins, in multiples of the learning-rate warm-up.
        final_warmup: Length of training after the schedule's end, in multiples of the learning-rate warm-up.
        freeze_masks: Whether masks stand still after the schedule's end, so that only weights still learn.
    """

    default_granularity: ClassVar[Mapping[str, str]] = {"attention": "element", "feed_forward": "element"}
    learns_scores: ClassVar[bool] = True
    keeps_patterns: ClassVar[bool] = False
    collapse_remedies: ClassVar[tuple[str, ...]] = (
        "a greater strategy.initial_warmup",
        "a finer strategy.granularity",
    )

    def __init__(
        self,
        granularity: Mapping[str, str] | None,
        initial_warmup: float,
        final_warmup: float,
        freeze_masks: bool,
    ) -> None:
        super().__init__()
        for name, value in (("initial_warmup", initial_warmup), ("final_warmup", final_warmup)):
            if not value >= 0:
                raise UserError(
                    f"{name} is {value:g}; it must be 0 or more, in multiples of the learning-rate warm-up."
                )
        self.granularity = granularity_by_role(granularity, default=self.default_granularity)
        self.initial_warmup = initial_warmup
        self.final_warmup = final_warmup
        self.freeze_masks = freeze_masks

    @abstractmethod
    def prune(self, amount: float, *, steps_after: int) -> None:
        """Set what masks keep.

        Args:
            amount: Point of the schedule, from 0, nothing pruned yet, to 1, the target.
            steps_after: Optimizer steps since the schedule's end; negative before it.
        """

    def attach(self, layout: PrunableLayout) -> None:
        masks = make_masks(layout, self.granularity, scores=self.learns_scores, patterns=self.keeps_patterns)
        for name, mask in masks:
            self.add_mask(name, mask, layout)

    def window(self, progress: Progress) -> tuple[int, int]:
        """First and last optimizer step of the schedule."""
        return pruning_window(
            total_steps=progress.total_steps,
            warmup_steps=progress.warmup_steps,
            initial_warmup=self.initial_warmup,
            final_warmup=self.final_warmup,
        )

    def advance(self, progress: Progress) -> None:
        start, end = self.window(progress)
        if not (self.freeze_masks and progress.step > end):
            amount = cubic(step=progress.step, start=start, end=end, initial=0.0, final=1.0)
            self.prune(amount, steps_after=progress.step - end)

    def target_reached(self, progress: Progress) -> bool:
        return progress.step >= self.window(progress)[1]
