"""When a strategy prunes: one value object for all strategies that have a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bplightning.errors import UserError

if TYPE_CHECKING:
    from bplightning.contracts.strategy import Progress


@dataclass(frozen=True)
class PruningWindow:
    """The part of training in which pruning goes on, between two lengths of training without it.

    Args:
        initial_warmup: Length of training before pruning begins, in multiples of the learning-rate warm-up, 0 or more.
        final_warmup: Length of training after the target is reached, in multiples of the learning-rate warm-up, 0 or
            more.
        freeze_masks: Whether masks must stay as they are after the target is reached, so that only weights still
            learn. False leaves it to the strategy: some keep them in any case. One that cannot keep them refuses true.

    Raises:
        UserError: A length is below 0.
    """

    initial_warmup: float = 1.0
    final_warmup: float = 2.0
    freeze_masks: bool = False

    def __post_init__(self) -> None:
        for name in ("initial_warmup", "final_warmup"):
            value = getattr(self, name)
            if not value >= 0:
                raise UserError(
                    f"window.{name} is {value:g}; it must be 0 or more, in multiples of the learning-rate warm-up."
                )

    def steps(self, progress: Progress, *, section: str = "strategy.window") -> tuple[int, int]:
        """First and last optimizer step of the window.

        Args:
            progress: Any moment of the run; its length and its learning-rate warm-up count.
            section: The section of the configuration that holds the two lengths, for the message.

        Raises:
            UserError: No step is left between the two.

        >>> from bplightning.contracts.strategy import Progress
        >>> PruningWindow(initial_warmup=1, final_warmup=10).steps(Progress(0, total_steps=1000, warmup_steps=50))
        (50, 500)
        """
        total, warmup = progress.total_steps, progress.warmup_steps
        start = round(self.initial_warmup * warmup)
        end = total - round(self.final_warmup * warmup)
        if not 0 <= start < end:
            raise UserError(
                f"the pruning schedule has no step left: of {total} optimizer steps, initial_warmup "
                f"{self.initial_warmup:g} and final_warmup {self.final_warmup:g} times the warm-up of {warmup} steps "
                f"leave {end - start}. Train longer, or make model.warmup, {section}.initial_warmup or "
                f"{section}.final_warmup smaller."
            )
        return start, end

    def ended(self, progress: Progress) -> bool:
        """Whether the target is reached: the window's last step is taken.

        Args:
            progress: Where training stands.

        >>> from bplightning.contracts.strategy import Progress
        >>> window = PruningWindow(initial_warmup=1, final_warmup=10)
        >>> [window.ended(Progress(step, total_steps=1000, warmup_steps=50)) for step in (499, 500)]
        [False, True]
        """
        return progress.step >= self.steps(progress)[1]


PRUNING_WINDOW = PruningWindow()
"""Pruning from one learning-rate warm-up on, to two before the end. Frozen, so it can be a parameter's default."""
