"""ZipLM: heads and units go one at a time, the others make up for them, and each layer keeps what its time is worth.

Kurtic, Frantar, Alistarh, *ZipLM: Inference-Aware Structured Pruning of Language Models*, 2023 (arXiv 2302.04089). The
authors published no code; this is written from the paper. The mathematics is in
`bplightning.strategies.shared.second_order` (what goes, section 3.1) and `bplightning.strategies.ziplm.layer_sizes`
(how much of each layer, section 3.2).

How one layer shrinks is in `bplightning.strategies.ziplm.shrinking_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from bplightning.contracts.capabilities import Prepared, Staged
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import NO_TARGET, Target, shown
from bplightning.contracts.targeted import Targeted
from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, can_shrink, kind_of
from bplightning.masks.granularity import masks_of
from bplightning.strategies.shared.latency_target import LatencySpeedup
from bplightning.strategies.shared.layer_inputs import input_moments
from bplightning.strategies.ziplm.layer_sizes import search_sizes
from bplightning.strategies.ziplm.shrinking_layer import ShrinkingLayer
from bplightning.training.calibration import rows_of


class ZipLM(Targeted, Staged, Prepared):
    """Heads and units to measured speed-ups; a family of models.

    Prunes heads and units to one speed-up after another, by second-order removal within a budget of milliseconds.

    At each target, calibration data goes through the model once. For each layer it is found in what order its heads or
    units go, what the error is at each size, and what the columns that stay must become; then how many stay in each
    layer, so that the model is as fast as the target says, by a latency table. Between targets the weights are
    fine-tuned, best with `--distillation.teacher` and `--distillation.alpha_hidden` (the paper's losses); what went
    does not return. Before the next target the model is kept beside the last one.

    It departs from the paper in this: a layer with a bias makes up for the mean of what goes with that bias, exactly;
    the learning rate falls once over the whole run, not after each target anew.

    Args:
        target: How many times faster than the dense model each model is to be, by the latency table: one
            speed-up or a list of ascending ones. Default: one model, 2 times.
        start: Part of training before the first pruning, in [0, 1); the targets share what comes after it evenly.
            It takes the place of a window, which has one end: each of several targets is pruned to at one step.
        calibration_examples: Training examples that each pruning looks at, 1 or more.
        damping: What is added to the diagonal of each Hessian, as a part of its mean, above 0.
        search_tries: How many weightings of the layers are tried, each by the loss on the calibration
            data; 0 weighs their relative errors alike.
    """

    puts_back = False
    target_kinds: ClassVar[tuple[str, ...]] = ("latency_speedup",)
    makes_size_variants: ClassVar[bool] = True
    default_target: ClassVar[Target] = Target(latency_speedup=2.0)

    def __init__(
        self,
        target: Target = NO_TARGET,
        start: float = 0.25,
        calibration_examples: int = 512,
        damping: float = 0.01,
        search_tries: int = 50,
    ) -> None:
        super().__init__()
        self.take_target(target)
        if not 0 <= start < 1:
            raise UserError(f"start is {start:g}; it is the part of training before pruning, and must be in [0, 1).")
        if calibration_examples < 1:
            raise UserError(f"calibration_examples is {calibration_examples}; it must be 1 or more.")
        if not damping > 0:
            raise UserError(
                f"damping is {damping:g}; it must be above 0, such as 0.01, for Hessians to have an inverse."
            )
        if search_tries < 0:
            raise UserError(f"search_tries is {search_tries}; it must be 0 or more.")
        self.targets = targets = self.target.speedups
        self.start = start
        self.calibration_examples = calibration_examples
        self.damping = damping
        self.search_tries = search_tries
        self.latency = LatencySpeedup(targets[-1], self.target.latency_table)
        self.groups: list[Group] = []
        self.stage = 0
        """Targets pruned to so far."""
        self.due = len(targets)
        """Targets that are to be pruned to by now: all of them, where nobody trains and calls `advance`."""

    # -- the life of a strategy ----------------------------------------------------------------------------------------

    def attach(self, layout: PrunableLayout) -> None:
        self.groups = can_shrink(layout)
        if not self.groups:
            raise UserError("the model has no head or unit that can be removed: there is nothing that ziplm can prune.")
        for group in self.groups:
            granularity = "head" if isinstance(group, AttentionGroup) else "unit"
            for name, mask in masks_of(layout.model, group, granularity, scores=False):
                self.add_mask(name, mask, layout)
        self.latency.attach(layout, self.all_masks)
        self.require_reachable()

    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        self.latency.prepare(dense)
        self.require_reachable()

    def require_reachable(self) -> None:
        """Refuse a target that the model does not reach with nothing left of its layers, as soon as that is known."""
        table = self.latency.table
        if table is not None and table.sum_within(table.dense_ms / self.targets[-1]) < 0:
            raise UserError(
                f"target.latency_speedup has {self.targets[-1]:g}, which cannot be reached: with every head and unit "
                f"removed, the model is {table.largest_speedup:.4g} times faster. Ask for less than that."
            )

    def advance(self, progress: Progress) -> None:
        steps = self._steps(progress)
        if self.stage < len(self.targets) and len(set(steps)) < len(steps):
            raise UserError(
                f"target.latency_speedup has {len(steps)} targets, and with start {self.start:g} and "
                f"{progress.total_steps} optimizer steps they fall on {', '.join(map(str, steps))}, several "
                "on one: train longer, or give fewer targets."
            )
        self.due = self.due_at(progress)

    def _steps(self, progress: Progress) -> list[int]:
        """The step of each target."""
        begin, targets = self.start * progress.total_steps, len(self.targets)
        return [round(begin + (progress.total_steps - begin) * index / targets) for index in range(targets)]

    def due_at(self, progress: Progress) -> int:
        """How many of the targets are to be pruned to by a step."""
        return sum(progress.step >= step for step in self._steps(progress))

    def target_reached(self, progress: Progress) -> bool:
        return self.due_at(progress) == len(self.targets)

    def ready(self, progress: Progress) -> str | None:
        return f"{self.targets[self.stage - 1]:g}x" if 0 < self.stage < self.due else None

    def wants_calibration(self, progress: Progress) -> int:
        return self.calibration_examples if self.stage < self.due else 0

    def examples_at_once(self) -> int:
        if len(self.targets) > 1:
            raise UserError(
                f"target.latency_speedup is {shown(self.targets)}, and without training the model is pruned once: give "
                "one, in one call of `prune` for each, or use `fit`."
            )
        return self.calibration_examples

    def metrics(self) -> dict[str, Tensor | float]:
        return {"target_speedup": self.targets[self.stage - 1] if self.stage else 1.0}

    def get_extra_state(self) -> Tensor:
        """How many targets were pruned to, and the targets; what is kept is in the masks."""
        return torch.tensor([self.stage, *self.targets], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        stage, *targets = state.tolist()
        if targets != self.targets:
            raise UserError(
                f"target.latency_speedup is {shown(self.targets)}, and the run to continue has {shown(targets)}: give "
                "those, or begin a new run."
            )
        self.stage = int(stage)

    # -- pruning to a target -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[dict[str, Tensor]],
        loss_fn: Callable[[Any, dict[str, Tensor]], Tensor],
    ) -> None:
        """Prune to the target that is due, or where it is called before any is, to the next one.

        Raises:
            UserError: There is no latency table yet, no batch, or the target is below what the layers' times allow.
        """
        table = self.latency.table
        if table is None:
            raise UserError(
                "ziplm has no latency table yet: give target.latency_table, or call `prepare` before `calibrate`, "
                "which measures one."
            )
        stage = max(self.due, self.stage + 1)
        if stage > len(self.targets):
            return
        target = self.targets[stage - 1]
        moments = input_moments(model, self.groups, batches)
        if not moments:
            raise UserError("there was no batch to calibrate with: give some training data.")
        if unseen := [group.name for group in self.groups if group.name not in moments]:
            raise UserError(
                f"{', '.join(unseen)} of the model was never computed on the calibration data, as cross-attention is "
                "not in a decoder without its encoder: ziplm cannot weigh it. Take post-training or hybrid."
            )
        masks = {mask.covers[-1].member: mask for mask in self.all_masks}
        layers = [
            ShrinkingLayer.of(
                model, group, masks[group.members[-1]], moments.pop(group.name), table, damping=self.damping
            )
            for group in self.groups
        ]

        def loss_of(sizes: Sequence[int]) -> float:
            for layer, size in zip(layers, sizes, strict=True):
                layer.shrink_to(size)
            losses, rows = zip(*((loss_fn(model(**batch), batch), rows_of(batch)) for batch in batches), strict=True)
            weights = torch.tensor(rows, dtype=torch.float64, device=losses[0].device)
            return float(torch.stack(losses).double() @ weights / weights.sum())

        sizes = search_sizes(
            [layer.options for layer in layers],
            budget_ms=table.sum_within(table.dense_ms / target),
            loss_of=loss_of,
            tries=self.search_tries,
            seed=stage,
        )
        assert sizes is not None  # `require_reachable`: a layer that keeps nothing takes no time
        for layer, size in zip(layers, sizes, strict=True):
            layer.shrink_to(size)
            layer.mask.set_grid(layer.kept(size)[:, None])
        self.stage = stage
        milliseconds = table.milliseconds((layer.group.role, size) for layer, size in zip(layers, sizes, strict=True))
        shown = ", ".join(f"{kind} {counts}" for kind, counts in _by_kind(layers, sizes).items())
        rank_zero_info(
            f"Pruned to {target:g} times the speed ({table.dense_ms / milliseconds:.3f} by the latency table): {shown}."
        )


def _by_kind(layers: Sequence[ShrinkingLayer], sizes: Sequence[int]) -> dict[str, str]:
    """``heads`` and ``units`` to how many each layer keeps, for people."""
    shown: dict[str, list[str]] = {}
    for layer, size in zip(layers, sizes, strict=True):
        shown.setdefault(kind_of(layer.group), []).append(str(size))
    return {kind: " ".join(counts) for kind, counts in shown.items()}
