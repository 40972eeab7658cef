"""Movement pruning (Sanh, Wolf, Rush 2020, arXiv 2005.07683): keep what moves away from zero while it learns."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from bplightning.contracts.target import NO_TARGET, Target
from bplightning.contracts.window import PRUNING_WINDOW, PruningWindow
from bplightning.errors import UserError
from bplightning.masks.masking import Mask
from bplightning.strategies.shared.top_k import TopK


class Movement(TopK):
    """The highest learned scores, an exact fraction.

    Keeps the tiles whose scores are highest; a score grows while its weights move away from zero.

    The gradient of a score is the sum over its tile of ``dL/dW' * W``, straight through the cut, so what was pruned can
    return (arXiv 2005.07683, equations 2 and 3; in blocks, arXiv 2109.04838, section 3.2). It departs from the
    published code in choosing anew at every step also for the global scope, where that does it every 25 steps
    (`refresh_every`).

    Args:
        target: What to keep at the end of the schedule: a density, a quarter by default. An N:M granularity keeps its
            own, and no target can be given where all are N:M. The papers take densities of 0.15 and less.
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), N:M
            such as 2:4, head (attention) or unit (feed-forward). Default: element; a decoder's as the encoder's.
        scope: Where weights compete: `local`, within each matrix, which all reach the density; or `global`, in one
            ranking of the whole model.
        score_learning_rate: Learning rate of the scores.
        window: When it prunes.
        refresh_every: Optimizer steps between two choices of what to keep, 1 or more.
    """

    def __init__(
        self,
        target: Target = NO_TARGET,
        granularity: dict[str, str] | None = None,
        scope: Literal["local", "global"] = "local",
        score_learning_rate: float = 1e-2,
        window: PruningWindow = PRUNING_WINDOW,
        refresh_every: int = 1,
    ) -> None:
        super().__init__(target, granularity, scope, window, refresh_every)
        if score_learning_rate <= 0:
            raise UserError(
                f"score_learning_rate is {score_learning_rate:g}; it must be above 0. The papers take 1e-2."
            )
        self.score_learning_rate = score_learning_rate

    def worth(self, mask: Mask) -> Tensor:
        assert mask.scores is not None
        return mask.scores

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        scores = [mask.scores for mask in self.all_masks]
        return [{"params": scores, "lr": self.score_learning_rate, "weight_decay": 0.0, "name": "scores"}]
