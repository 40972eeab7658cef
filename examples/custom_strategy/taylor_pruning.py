"""First-order Taylor pruning (Molchanov et al. 2019, arXiv 1906.10771; of heads Michel et al. 2019, arXiv 1905.10650).

Legend: `O` out features, `I` in features, `N` heads or units of all layers, ``(N, 1)`` those of one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bplightning import PrunableLayout, PruningWindow, ScheduledStrategy, Target, UserError, keep_largest
from bplightning.contracts import NO_TARGET, PRUNING_WINDOW, Targeted
from bplightning.layout.groups import Member


class TaylorPruning(Targeted, ScheduledStrategy):
    """Removes the heads and units that the loss would miss least, by the first term of its Taylor series.

    Without a head or a unit, of weights ``w``, the loss changes by about ``|sum(dL/dw * w)|`` (arXiv 1906.10771,
    equation 8, there squared; which are least is the same). Its moving average over the optimizer steps is the
    importance. Heads compete with the heads of all layers, units with the units of all layers, down to a density that
    falls on the cubic schedule. What is removed gets no gradient any more, and stays removed. It departs from the
    papers in pruning while it learns, and in that the weights are those after the step whose gradients they meet.

    Args:
        target: What to keep at the end of the schedule: a density of the heads, and of the units, half by default.
        memory: Weight of the past in the moving average of the importance, in [0, 1); 0.95 averages about 20 optimizer
            steps.
        window: When it prunes; its masks stay as they are afterwards in any case.
    """

    learns_scores = False
    default_target = Target(density=0.5)

    def __init__(
        self,
        target: Target = NO_TARGET,
        memory: float = 0.95,
        window: PruningWindow = PRUNING_WINDOW,
    ) -> None:
        super().__init__({"attention": "head", "feed_forward": "unit"}, replace(window, freeze_masks=True))
        self.take_target(target)
        if not 0 <= memory < 1:
            raise UserError(f"memory is {memory:g}; it is the weight of the past and must be in [0, 1).")
        self.target_density = self.target.density
        self.memory = memory

    def attach(self, layout: PrunableLayout) -> None:
        super().attach(layout)
        self.layout = layout
        for name, mask in self.masks.items():
            # In the state_dict, so that a run that is resumed remembers.
            self.register_buffer(f"importance_{name}", torch.zeros_like(mask.kept, dtype=torch.float32))

    def importance(self, name: str) -> Tensor:
        """How much the loss would miss each entry of a mask ``(N, 1)``."""
        return self.get_buffer(f"importance_{name}")

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Gradients are averaged over ranks by now, so each rank comes to the same importance."""
        for name, mask in self.masks.items():
            change = (mask.pooled(self.products) * mask.weights_per_entry).abs()
            importance = self.importance(name)
            # A step that a 16-bit scaler skipped has no gradients to learn from. No `if`: that would wait for the host.
            importance.lerp_(torch.where(change.isfinite(), change, importance), 1 - self.memory)

    def products(self, member: Member) -> Tensor:
        """Gradient times weight ``(O, I)``; zeros where no gradient came."""
        weight, grad = member.weight(self.layout.model), member.grad(self.layout.model)
        return torch.zeros_like(weight) if grad is None else grad * weight

    def prune(self, amount: float, *, steps_after: int) -> None:
        density = 1 + (self.target_density - 1) * amount
        roles: dict[str, list[str]] = {}
        for name, mask in self.masks.items():
            roles.setdefault(mask.role, []).append(name)
        for names in roles.values():
            masks = [self.masks[name] for name in names]
            values = [
                torch.where(mask.kept, self.importance(name), -1.0) for name, mask in zip(names, masks, strict=True)
            ]
            kept_N = keep_largest(values_N=torch.cat(values).flatten(), density=density)
            for mask, kept in zip(masks, kept_N.split([len(value) for value in values]), strict=True):
                mask.set_grid(kept[:, None])
