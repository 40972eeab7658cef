"""Soft movement pruning (Sanh et al. 2020, arXiv 2005.07683) at any granularity (Lagunas et al. 2021, 2109.04838)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bplightning.contracts.capabilities import Prepared, Steered
from bplightning.contracts.scheduled import ScheduledStrategy
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import KINDS, NO_TARGET, Target
from bplightning.contracts.targeted import Targeted
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import check_role_weights, role_weight
from bplightning.strategies.shared.guide import Guide
from bplightning.strategies.shared.short_runs import LEAST, highest_cut, penalty_that_counts
from bplightning.strategies.shared.snap import Snap
from bplightning.strategies.shared.steering import Steering
from bplightning.strategies.shared.targets import size_target
from bplightning.strategies.shared.uniform import levelled, require_whole

SCORE_LEARNING_RATE = 1e-2
"""The papers' learning rate of scores."""

SATURATED = 9.2
"""Where the slope of sigmoid(score), by which the penalty pulls, is a ten-thousandth."""

SCORE_TRAVEL = 30.0
"""How far scores can travel in a run whose score learning rate follows from its length: times the way to the cut."""

REGULARIZATION = 20.0
"""Where the penalty's weight begins where nothing is said of it."""

TOLERANCE = 0.1
"""Relative excess over a target with which it still counts as reached."""

LONG_AT_THE_END = PruningWindow(initial_warmup=1.0, final_warmup=10.0)
"""The papers' window on SQuAD: half of their run is left for the weights."""


class SoftMovement(Targeted, ScheduledStrategy, Prepared, Steered):
    """Learned scores above a rising threshold.

    Keeps the tiles whose sigmoid(score) is above a threshold that rises while a penalty pushes scores down.

    The gradient of a score is how much the loss wants its weights to move away from zero, summed over the tile,
    straight through the threshold; the penalty is ``lambda(t) * mean(sigmoid(S))``, averaged over the masks of a role
    and then over the roles (arXiv 2005.07683, section 4; arXiv 2109.04838, section 3.2). It departs from the published
    code in having no least number of weights kept per matrix: whole heads and whole layers may go.

    With a target the penalty is steered there. A fixed lambda, as in the papers, belongs to runs of thousands of steps:
    weights need steps to answer a score that falls, and in a short run scores fall faster. So in a run of T < 500
    optimizer steps lambda counts as lambda * T / 500, and masks fall no faster than on the cubic way to a density of
    0.05, and no further. Longer runs, and those whose score learning rate is given, are as in the papers.

    Args:
        target: What to keep: a density, FLOPs or a speed-up as measured. The penalty is steered there, from
            `regularization` on. Default: a density of 0.25; none where `regularization` is given, from which then
            follows what is kept.
        regularization: Weight lambda of the penalty that pushes scores down: greater prunes more. What a lambda leaves
            depends on task, model and length of the run, so give a target, or a lambda to repeat an experiment. The
            papers take 1 to 40 for blocks and 20 to 400 for single elements. Default: 20, where steering begins.
        final_score_threshold: Cut-off on sigmoid(score) at the end of the schedule, in (0, 0.5).
        initial_score_threshold: Cut-off on sigmoid(score) at its beginning, in [0, 0.5).
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), head
            (attention) or unit (feed-forward). Default: the strategy's own, element for soft-movement, 32x32 and unit
            for hybrid; a decoder's as the encoder's.
        score_learning_rate: Learning rate of the scores. Default: 1e-2 as in the papers, and more in runs of fewer than
            about 6,600 optimizer steps, in which scores could not travel far enough.
        window: When it prunes; its end is where the final threshold is reached. With a target masks stay as they are
            after it in any case, with `freeze_masks` false too.
        role_weights: Factor of a role's share of the penalty, by role. Default: 1; a decoder's as the encoder's.
        guide: Folder of a former compact model of the same dense model: what touches a head that it kept is always
            kept, and takes no part in the penalty. Default: none.
    """

    collapse_remedies: ClassVar[tuple[str, ...]] = (
        "a smaller strategy.role_weights for that role",
        *ScheduledStrategy.collapse_remedies,
    )

    target_kinds: ClassVar[tuple[str, ...]] = KINDS
    default_target: ClassVar[Target] = Target(density=0.25)
    keeps_uniform: ClassVar[bool] = True
    older_names: ClassVar[Mapping[str, str]] = {"target": "size_target"}

    score_threshold: Tensor
    penalty_weight: Tensor

    def __init__(
        self,
        target: Target = NO_TARGET,
        regularization: float | None = None,
        final_score_threshold: float = 0.1,
        initial_score_threshold: float = 0.0,
        granularity: dict[str, str] | None = None,
        score_learning_rate: float | None = None,
        window: PruningWindow = LONG_AT_THE_END,
        role_weights: dict[str, float] | None = None,
        guide: str | None = None,
    ) -> None:
        super().__init__(granularity, window)
        self.take_target(target)
        if target.kind is None and regularization is not None:
            self.target = Target(uniform=target.uniform)
        self.size_target = size_target(self.target)
        regularization = REGULARIZATION if regularization is None else regularization
        for name, value in (("initial", initial_score_threshold), ("final", final_score_threshold)):
            if not 0 <= value < 0.5 or (name == "final" and value == 0):
                raise UserError(
                    f"{name}_score_threshold is {value:g}; it is a cut-off on sigmoid(score), which starts at 0.5, and "
                    f"must be in {'(0, 0.5)' if name == 'final' else '[0, 0.5)'}. The papers end at 0.1."
                )
        if not regularization >= 0:
            raise UserError(
                f"regularization is {regularization:g}; it must be 0 or more. The papers take 1 to 40 for blocks."
            )
        if self.size_target is not None and regularization == 0:
            raise UserError("regularization is 0, from which no penalty can be steered: give one above 0.")
        if score_learning_rate is not None and not score_learning_rate > 0:
            raise UserError(
                f"score_learning_rate is {score_learning_rate:g}; it must be above 0. The papers take 0.01."
            )
        self.regularization = regularization
        self.guide = Guide(guide)
        self.thresholds = initial_score_threshold, final_score_threshold
        self.score_learning_rate = score_learning_rate
        self.role_weights = dict(role_weights or {})
        check_role_weights(self.role_weights)
        # On the device, so that a training step never waits for the host, and in the state_dict, so that it says all.
        self.register_buffer("score_threshold", torch.tensor(initial_score_threshold))
        self.register_buffer("penalty_weight", torch.tensor(0.0))
        self.pull = 1.0  # part of the penalty that counts
        self.steering: Steering | None = None
        self.last_move: Snap | None = None

    @property
    def masks_stay(self) -> bool:
        return super().masks_stay or self.size_target is not None

    def attach(self, layout: PrunableLayout) -> None:
        super().attach(layout)
        if self.target.uniform:
            require_whole(self.granularity, self.all_masks)
        self.guide.attach(layout, self.all_masks)
        if self.size_target is not None:
            device = self.all_masks[0].kept.device
            self.size_target.attach(layout, self.all_masks)
            self._require_reachable()
            cut, weight = logit(self.thresholds[1]), self.regularization
            steering = Steering(self.size_target.share, self.left, self.span, final_cut=cut, weight=weight)
            self.steering = steering.to(device)
            self.last_move = Snap(self.all_masks)

    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        if self.size_target is not None:
            self.size_target.prepare(dense)
            self._require_reachable()

    def advance(self, progress: Progress) -> None:
        start, end = self.window.steps(progress)
        if self._steers() and progress.step <= end:
            assert self.steering is not None
            self.steering.advance(step=progress.step, start=start, end=end)
        if self.size_target is None and self.score_learning_rate is None:
            self.pull = penalty_that_counts(progress.total_steps)
        super().advance(progress)

    def target_reached(self, progress: Progress) -> bool:
        """Whether the window is over, and with a target whether what is left is at most `TOLERANCE` more than it."""
        if not super().target_reached(progress) or not self._steers() or self.last_move is None:
            return super().target_reached(progress)
        assert self.size_target is not None
        return not bool(self.last_move.done) or self._share_left() <= (1 + TOLERANCE) * self.size_target.share

    @torch.no_grad()
    def prune(self, amount: float, *, steps_after: int) -> None:
        initial, final = self.thresholds
        threshold = initial + (final - initial) * amount
        self.score_threshold.fill_(threshold)
        self.penalty_weight.fill_(self.pull * self.regularization * threshold / final)
        cut: float | Tensor = logit(threshold)
        if self.pull < 1:
            cut = highest_cut(self.all_masks, self.scores(), self.span(), amount=amount).clamp(max=cut)
        if self._steers():
            assert self.steering is not None
            self.penalty_weight.copy_(self.steering.weight() * (amount > 0))
            cut = self.steering.cut_to_make(logit(threshold))
            self.score_threshold.copy_(cut.sigmoid())
        grids = self.grids_above(cut)
        if self.last_move is not None and steps_after == 0:
            self.last_move.record([mask.kept for mask in self.all_masks], grids)
        self.set_grids(grids)

    def scores(self) -> list[Tensor]:
        """The scores ``(R, C)`` of each mask; infinite for what the guide protects, levelled for a uniform target."""
        scores = self.guide.protect([cast(Tensor, mask.scores) for mask in self.all_masks], math.inf)
        return levelled(self.all_masks, scores, self.granularity) if self.target.uniform else scores

    def grids_above(self, cut: float | Tensor) -> list[Tensor]:
        """The grid ``(R, C)`` of each mask with a cut on scores."""
        return [scores_RC > cut for scores_RC in self.scores()]

    def set_grids(self, grids: Sequence[Tensor]) -> None:
        """Keep these tiles from now on."""
        for mask, grid_RC in zip(self.all_masks, grids, strict=True):
            mask.set_grid(grid_RC)

    def penalty(self) -> Tensor | None:
        if self.size_target is not None and not self.size_target.known:
            kind, value = self.size_target.kind, self.size_target.value
            raise UserError(
                f"target.{kind} is {value:g}, and no times were measured that could steer to "
                "it: call the strategy's `prepare` before training (Attachment.prepare does), or give "
                "target.latency_table."
            )
        sigmoids = self.guide.protect([cast(Tensor, mask.scores).sigmoid() for mask in self.all_masks], 0.0)
        means: dict[str, list[Tensor]] = {}
        for mask, sigmoid_RC, free in zip(self.all_masks, sigmoids, self.guide.free(self.all_masks), strict=True):
            if free > 0:
                means.setdefault(mask.role, []).append(sigmoid_RC.sum() / free)
        shares = [role_weight(self.role_weights, role) * torch.stack(values).mean() for role, values in means.items()]
        return self.penalty_weight * torch.stack(shares).mean() if shares else None

    # -- the target ----------------------------------------------------------------------------------------------------

    def _steers(self) -> bool:
        """Whether there is a target that can be looked at; where nothing is trained one in time may not be known."""
        return self.size_target is not None and self.size_target.known

    def _require_reachable(self) -> None:
        if self._steers():
            assert self.size_target is not None
            smallest = float(self.left()(self.span() + 1))
            self.size_target.require_reachable(smallest, guided=self.guide.folder is not None)

    @torch.no_grad()
    def left(self) -> Callable[[Tensor], Tensor]:
        """What is left of the network with any cut on the scores of this moment."""
        assert self.size_target is not None
        return self.size_target.left(self.all_masks, self.scores())

    @torch.no_grad()
    def span(self) -> Tensor:
        """The greatest distance of a score from 0, what a guide protects included, a 0-d tensor."""
        return torch.stack([cast(Tensor, mask.scores).abs().amax() for mask in self.all_masks]).amax()

    @torch.no_grad()
    def reached(self) -> float:
        """The target's value that the masks of this moment give; waits for the device."""
        assert self.size_target is not None
        return self.size_target.value_of(self._share_left())

    @torch.no_grad()
    def _share_left(self) -> float:
        """The share of the network, as the target counts it, that the masks of this moment leave."""
        assert self.size_target is not None
        grids = [mask.kept.float() for mask in self.all_masks]
        half = torch.tensor(0.5, device=grids[0].device)
        return float(self.size_target.left(self.all_masks, grids)(half))

    def put_masks(self, *, before_snap: bool) -> None:
        """Set the masks to those before the snap, or to those after it, as often as one likes; see `snap`.

        Args:
            before_snap: Which of both.
        """
        if self.last_move is not None and bool(self.last_move.done):
            self.set_grids(self.last_move.grids(before=before_snap))

    def snap(self) -> dict[str, Any] | None:
        """What was done at the end of the schedule to land on the target where steering left a little; for reports.

        Waits for the device; leaves the masks as they are after the snap.

        Returns:
            ``kind`` of target (``"density"``, ``"flops"`` or ``"latency_speedup"``), ``target``, its value,
            ``before`` and ``after``, the values the masks give before and after the snap, ``changed``, how many entries
            of all grids it changed, and ``shape``, ``"BxL"``, that a speed-up in time is meant for. `None` without a
            target, and before the schedule's end.
        """
        if self.size_target is None or self.last_move is None or not bool(self.last_move.done):
            return None
        values = {}
        for when in ("before", "after"):
            self.put_masks(before_snap=when == "before")
            values[when] = self.reached()
        return {
            "kind": self.size_target.kind,
            "target": self.size_target.value,
            **values,
            "changed": self.last_move.changed(),
            "shape": self.size_target.shape,
        }

    def _score_learning_rate(self, total_steps: int) -> float:
        if self.score_learning_rate is not None:
            return self.score_learning_rate
        # Adam moves a score by at most about its learning rate a step; the way is from 0 to logit(threshold).
        return max(SCORE_LEARNING_RATE, SCORE_TRAVEL * -logit(self.thresholds[1]) / total_steps)

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        learning_rate = self._score_learning_rate(total_steps)
        scores = [mask.scores for mask in self.all_masks]
        return [{"params": scores, "lr": learning_rate, "weight_decay": 0.0, "name": "scores"}]

    @torch.no_grad()
    def advice(self, progress: Progress) -> list[str]:
        found, (start, end) = [], self.window.steps(progress)
        rate, way = self._score_learning_rate(progress.total_steps), -logit(self.thresholds[1])
        reach = rate * (end - progress.step)  # Adam moves a score by at most about its learning rate a step
        if progress.step <= start and self.size_target is None and reach < way:
            found.append(
                f"score_learning_rate is {rate:.3g}, and pruning ends at step {end}: until then scores can move by "
                f"{reach:.3g}, and the threshold is {way:.3g} below where they start, so that nothing will be pruned. "
                "Give a greater one, or none for one that fits, or train longer."
            )
        if self.pull < 1 and self.regularization:
            found.append(
                f"regularization is {self.regularization:g}, and a run of {progress.total_steps} optimizer steps is "
                f"short for a fixed penalty: it counts as {self.pull * self.regularization:.3g}, and no less than "
                f"{LEAST:g} of the weights is kept. Give a target instead, such as strategy.target.density 0.25."
            )
        for role in dict.fromkeys(mask.role for mask in self.all_masks):
            kept = [
                scores_RC[mask.kept & scores_RC.isfinite()]
                for mask, scores_RC in zip(self.all_masks, self.scores(), strict=True)
                if mask.role == role
            ]
            high = torch.cat(kept) > SATURATED
            if not self.target_reached(progress) and len(high) and float(high.float().mean()) > 0.5:
                found.append(
                    f"more than half of the scores of {role} that are kept lie above {SATURATED:g}, where the penalty "
                    "hardly moves them: give a smaller score_learning_rate, or a greater regularization from the start."
                )
        return found

    def metrics(self) -> dict[str, Tensor | float]:
        if self.steering is None:
            return {"score_threshold": self.score_threshold}
        steered = {"penalty_weight": self.penalty_weight, "target_cut": self.steering.cut}
        return {"score_threshold": self.score_threshold, **steered}


def logit(probability: float) -> float:
    """The score whose sigmoid is `probability`."""
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf
