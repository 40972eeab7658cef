"""What a network is to be pruned to: a density, or a speed-up counted in floating-point operations.

Both ask what is left above a cut on scores. Of a network there are parts that go one by one, each where the cut reaches
its score: single tiles for the density; for the operations whole heads and units, each with the score of the tile that
keeps it alive the longest. So a look at the scores, once, gives what is left for every cut.

Legend: `O` out features, `I` in features, `R`, `C` grid rows and columns, `H` heads, `K` key/value heads, `D` head
size, `F` units.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bplightning.equivalence import made_images, takes_images
from bplightning.errors import UserError
from bplightning.groups import AttentionGroup, FeedForwardGroup, Member
from bplightning.layout import PrunableLayout
from bplightning.masking import Cover, Mask
from bplightning.measure import FLOPS_SHAPE, fitting, flops_by_module
from bplightning.planning_estimate import flops_of_group
from bplightning.resizing import Group, size_of


@dataclass(frozen=True)
class Left:
    """What is left of a network with a cut on scores.

    Attributes:
        always: Share that no cut takes away.
        parts: Scores ``(N,)`` of parts that go one by one, and the share of each.

    >>> left = Left(0.5, ((torch.tensor([-1.0, 0.0, 1.0, 2.0]), 0.125),))
    >>> [float(left(torch.tensor(cut))) for cut in (-2.0, 0.0, 3.0)]
    [1.0, 0.75, 0.5]
    """

    always: float
    parts: tuple[tuple[Tensor, float], ...]

    def __call__(self, cut: Tensor) -> Tensor:
        """The share above a cut, a 0-d tensor."""
        left = torch.full_like(cut, self.always)
        for scores, share in self.parts:
            left = left + (scores > cut).count_nonzero() * share
        return left


class SizeTarget(ABC):
    """What a network is to be pruned to; where that asks for more than its masks, `attach` finds out.

    Attributes:
        kind: What is wanted, as reports call it.
        value: How much of it.
        share: What is to be left, of what the dense network has, in (0, 1).
    """

    kind: ClassVar[str]
    value: float
    share: float

    def attach(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:  # noqa: B027  a hook
        """Learn what the parts of a network count for.

        Args:
            layout: What can be pruned of it.
            masks: Its masks.
        """

    @abstractmethod
    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Left:
        """What is left with any cut.

        Args:
            masks: The masks of the network.
            scores: The scores ``(R, C)`` of each; infinite for what stays in any case.
        """

    @abstractmethod
    def value_of(self, share: float) -> float:
        """What a share is in the target's own terms."""

    def require_reachable(self, smallest: float, *, guided: bool) -> None:
        """Refuse a target below what no cut takes away.

        Args:
            smallest: The share left where everything is cut.
            guided: Whether a guide's heads are among it.

        Raises:
            UserError: The target is out of reach.
        """
        if smallest >= self.share:
            kept = " and the guide's heads" if guided else ""
            raise UserError(
                f"target_{self.kind} is {self.value:g}, which cannot be reached: with everything removed but what "
                f"cannot be pruned{kept}, it is {self.value_of(smallest):.4g}. Ask for less pruning than that"
                f"{', or take another guide' if guided else ''}."
            )


class Density(SizeTarget):
    """A fraction of the prunable weights.

    Args:
        density: The fraction kept, in (0, 1).

    Raises:
        UserError: It is not.
    """

    kind: ClassVar[str] = "density"

    def __init__(self, density: float) -> None:
        if not 0 < density < 1:
            raise UserError(f"target_density is {density:g}; it is the fraction kept and must be in (0, 1).")
        self.value = self.share = density

    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Left:
        total = sum(mask.total_weights for mask in masks)
        alike: dict[int, list[Tensor]] = {}
        for mask, scores_RC in zip(masks, scores, strict=True):
            alike.setdefault(mask.weights_per_entry, []).append(scores_RC.flatten())
        return Left(0.0, tuple((torch.cat(values), weights / total) for weights, values in alike.items()))

    def value_of(self, share: float) -> float:
        return share


class FlopsSpeedup(SizeTarget):
    """Floating-point operations of the dense model over those of the compact one.

    A head, or a unit, costs the same whichever goes. It goes as `bplightning.compaction` finds: a head when each of its
    dimensions has a value row or an output column without a tile, a unit when one of its rows or its column has none.
    That a value's constant may be zero by chance is not foreseen.

    Args:
        speedup: How many times fewer operations, above 1.

    Raises:
        UserError: It is not.
    """

    kind: ClassVar[str] = "flops_speedup"

    def __init__(self, speedup: float) -> None:
        if not speedup > 1:
            raise UserError(
                f"target_flops_speedup is {speedup:g}; it is the dense model's floating-point operations over the "
                "compact one's and must be above 1."
            )
        self.value, self.share = speedup, 1 / speedup
        self.groups: list[tuple[Group, float, bool]] = []
        self.always = 1.0
        self.where: dict[Member, tuple[int, Cover, tuple[int, ...]]] = {}

    def attach(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:
        counts = flops_by_module(layout.model, example_inputs(layout.model))
        for index, mask in enumerate(masks):
            for cover in mask.covers:
                self.where[cover.member] = index, cover, tuple(cover.member.weight(layout.model).shape)
        for group in layout.groups:
            if size_of(group) == 0 or any(member.expert is not None for member in group.members):
                continue  # nothing of it left, or what compaction cannot slice
            biased = any(member.bias_of(layout.model) is not None for member in group.members[:-1])
            share = flops_of_group(counts, group) / counts[""]
            self.groups.append((group, share / size_of(group), biased))
            self.always -= share

    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Left:
        parts = []
        for group, share, biased in self.groups:
            lives = (
                self.heads(group, scores) if isinstance(group, AttentionGroup) else self.units(group, scores, biased)
            )
            parts.append((lives, share))
        alike: dict[float, list[Tensor]] = {}
        for lives, share in parts:
            alike.setdefault(share, []).append(lives)
        return Left(self.always, tuple((torch.cat(lives), share) for share, lives in alike.items()))

    def heads(self, group: AttentionGroup, scores: Sequence[Tensor]) -> Tensor:
        """Where each key/value head of a group goes, with its queries ``(K,)``."""
        shape = group.kv_heads, group.heads // group.kv_heads, group.head_size
        values = self.lines(group.value, scores, axis=0).view(shape[0], 1, shape[2])
        columns = self.lines(group.output, scores, axis=1).view(shape)
        return torch.minimum(values, columns).flatten(1).amax(1)

    def units(self, group: FeedForwardGroup, scores: Sequence[Tensor], biased: bool) -> Tensor:
        """Where each unit of a group goes ``(F,)``; beside a factor that has a bias the other one must go, too."""
        rows = torch.stack([self.lines(up, scores, axis=0) for up in group.up])
        lives = rows.amax(0) if biased else rows.amin(0)
        return torch.minimum(lives, self.lines(group.down, scores, axis=1))

    def lines(self, member: Member, scores: Sequence[Tensor], *, axis: int) -> Tensor:
        """Where the last tile goes of each row (`axis` 0) or column (1) of a member: ``(O,)`` or ``(I,)``."""
        index, cover, shape = self.where[member]
        scores_RC = scores[index].T if cover.transposed else scores[index]
        highest = scores_RC.amax(1 - axis)
        return highest.repeat_interleave(shape[axis] // len(highest))

    def value_of(self, share: float) -> float:
        return 1 / share


def size_target(density: float | None, flops_speedup: float | None) -> SizeTarget | None:
    """The target of a strategy that may be given one of several.

    Raises:
        UserError: Both are given, or one is out of its range.
    """
    if density is not None and flops_speedup is not None:
        raise UserError(
            f"target_density is {density:g} and target_flops_speedup is {flops_speedup:g}, but a penalty is steered to "
            "one target: give one of both."
        )
    if flops_speedup is not None:
        return FlopsSpeedup(flops_speedup)
    return None if density is None else Density(density)


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Random inputs at `FLOPS_SHAPE` as tasks measure with: a decoder reads as many tokens as its encoder."""
    ((rows, tokens),) = fitting(model, [FLOPS_SHAPE])
    if takes_images(model):
        return made_images(model, rows)
    config: Any = model.config
    ids = torch.randint(config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int):  # BART and T5 classify by it, and want as many in each row
        ids[ids == end] = (end + 1) % config.vocab_size
        ids[:, -1] = end
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    return inputs
