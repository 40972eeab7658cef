"""What strategies that prune on a schedule share: granularity by role, the schedule, masks that may stand still."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from bplightning.contracts.capabilities import Advising
from bplightning.contracts.schedule import cubic
from bplightning.contracts.strategy import Progress
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import granularity_by_role, make_masks
from bplightning.plugins import name_of


class ScheduledStrategy(Advising, ABC):
    """Prunes more and more between two optimizer steps, the papers' cubic schedule (`bplightning.contracts.schedule`).

    A subclass says what masks keep at a point of the schedule (`prune`), and the granularity it has by default. Masks
    that are to stay as they are after it (`window.freeze_masks`, `masks_stay`) are not its concern.

    Attributes:
        freezes_masks: Whether its masks can stay as they are while weights go on learning; if not,
            `window.freeze_masks` must be false.

    Args:
        granularity: Role to granularity, where it is not `default_granularity`.
        window: When it prunes.
    """

    default_granularity: ClassVar[Mapping[str, str]] = {"attention": "element", "feed_forward": "element"}
    learns_scores: ClassVar[bool] = True
    freezes_masks: ClassVar[bool] = True
    keeps_patterns: ClassVar[bool] = False
    collapse_remedies: ClassVar[tuple[str, ...]] = (
        "a greater strategy.window.initial_warmup",
        "a finer strategy.granularity",
    )

    def __init__(self, granularity: Mapping[str, str] | None, window: PruningWindow) -> None:
        super().__init__()
        if window.freeze_masks and not self.freezes_masks:
            raise UserError(
                f"window.freeze_masks is true, which {name_of(type(self))} cannot do: what it keeps follows from "
                "scores that learn to the end. Leave it out."
            )
        self.granularity = granularity_by_role(granularity, default=self.default_granularity)
        self.window = window

    @property
    def masks_stay(self) -> bool:
        """Whether masks stay as they are after the target is reached."""
        return self.window.freeze_masks

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

    def advance(self, progress: Progress) -> None:
        start, end = self.window.steps(progress)
        if not (self.masks_stay and progress.step > end):
            amount = cubic(step=progress.step, start=start, end=end, initial=0.0, final=1.0)
            self.prune(amount, steps_after=progress.step - end)

    def target_reached(self, progress: Progress) -> bool:
        return self.window.ended(progress)
