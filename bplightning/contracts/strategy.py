"""The strategy contract: how a network is pruned.

A strategy is a `torch.nn.Module`, so whatever it learns (scores) or remembers (the step) is in its ``state_dict`` and a
resumed run is the run that was interrupted. The contract is eight hooks, each with a default (`attach`, `advance`,
`target_reached`, `penalty`, `parameter_groups`, `after_optimizer_step`, `metrics`, `harden`): a strategy overrides only
what differs. What few strategies do is in `bplightning.contracts.capabilities`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from bplightning.compaction.compact_config import require_compaction
from bplightning.contracts.saving import save_as_it_is, save_as_pruned
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask, install_mask, remove_masks

Capability = TypeVar("Capability", bound="PruningStrategy")


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

    The life of a strategy is `attach`, then for every optimizer step `advance`, a forward pass, `penalty` added to the
    loss, and `after_optimizer_step`; at the end `harden`. It knows neither the task nor Lightning.

    What few strategies do (prune without training, calibrate in between, learn from a teacher's layers, ...) has hooks
    of its own, in the bases of `bplightning.contracts.capabilities`.

    Attributes:
        puts_back: Whether units that were removed keep their weights, so that `Alignment` can restore some. They do not
            where their weights are gone, or where what stays has been changed to make up for them.
        older_names: Names in the strategy's `state_dict` that earlier versions wrote, to those of now; each is that of
            a value, or of a module with all in it.
    """

    puts_back: bool = True
    older_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.masks = nn.ModuleDict()

    # -- hooks a strategy overrides ------------------------------------------------------------------------------------

    def attach(self, layout: PrunableLayout) -> None:
        """Make the masks and install them on the model of `layout`; called once, before optimizers exist.

        Args:
            layout: What can be pruned of the model.
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

    def metrics(self) -> dict[str, Tensor | float]:
        """What to log beside density by role, name to scalar, for example ``{"score_threshold": 0.07}``."""
        return {}

    # -- what it can do besides ----------------------------------------------------------------------------------------

    @classmethod
    def offers(cls, kind: type[PruningStrategy]) -> bool:
        """Whether strategies of this class have a capability, asked before one is built.

        Args:
            kind: A base of `bplightning.contracts.capabilities`.
        """
        return issubclass(cls, kind)

    def capability(self, kind: type[Capability]) -> Capability | None:
        """The one whose hooks of a capability are to be called: this strategy, or `None` if it lacks that.

        Override it in a strategy whose settings decide, or that wraps another.

        Args:
            kind: A base of `bplightning.contracts.capabilities`.
        """
        return cast(Capability, self) if self.offers(kind) else None

    # -- what all strategies share -------------------------------------------------------------------------------------

    def add_mask(self, name: str, mask: Mask, layout: PrunableLayout) -> None:
        """Register `mask` under `name` (dots become dashes) and install it on the members it covers."""
        device = mask.covers[0].member.weight(layout.model).device
        self.masks[name.replace(".", "-")] = mask.to(device)
        install_mask(layout.model, mask)
        save_as_pruned(self, layout)

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
        save_as_it_is(layout.model)
        for mask in self.all_masks:
            mask.clear_idle(layout.model)
        require_compaction(layout)
        self.masks = nn.ModuleDict()

    def take_older_names(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Rename in place what an earlier version has written under another name (`older_names`).

        Args:
            state_dict: What was read.
            prefix: What the strategy's names begin with there.
        """
        for old, new in self.older_names.items():
            for name in list(state_dict):
                if f"{name}.".startswith(f"{prefix}{old}."):
                    state_dict[prefix + new + name.removeprefix(prefix + old)] = state_dict.pop(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        self.take_older_names(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)
