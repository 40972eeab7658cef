"""CoFi: coarse and fine gates at once (Xia, Zhong, Chen 2022, arXiv 2204.00408).

Legend: `N` gates of one vector, `R`, `C` grid rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.groups import AttentionGroup
from bplightning.layout import PrunableLayout
from bplightning.masking import Cover, Mask
from bplightning.narrowing import clear_dimensions, narrowing_covers, require_narrowable, set_narrowing
from bplightning.resizing import Group, kind_of, size_of, stream_width
from bplightning.schedule import pruning_window
from bplightning.skipping import is_skipped, settle_skips, skip_when_shut
from bplightning.strategies.drawing import generator_of
from bplightning.strategies.gates import FIRST_SCORE, Gate, Part, Phase, Sublayers, kept_in_evaluation, left
from bplightning.strategies.l0 import chance_open
from bplightning.strategy import Progress, PruningStrategy

LIMIT = math.log(100)
"""Scores are held within it on either side once pruning has begun."""

LEARNING_RATE = 1e-2
"""The paper's learning rate of scores and multipliers."""

TRAVEL = 6.0
"""How far scores can travel in a run whose rate follows from its length, in ways from one limit to the other."""

FARTHEST, HALVINGS = 32.0, 40
"""Interval in which the shift is looked for that lands on the target, and how often it is halved."""


STREAM = "stream"
"""Name and role of the mask of the residual stream's dimensions."""


class CoFi(PruningStrategy):
    """Multiplies heads, feed-forward units and whole sub-layers by random gates, held to a size.

    Each of these has a hard concrete gate (arXiv 1712.01312), and a head or unit is multiplied by its own and by its
    sub-layer's (arXiv 2204.00408, section 3.1): on the columns of the output and down projections, where the product
    of value and gate is formed. So has each dimension of the residual stream, one gate for all layers: on the norms,
    which count only dimensions whose gates are open. A sub-layer wholly shut is skipped, and its norm with it. The
    penalty is ``l1 (d -
    t) + l2 (d - t)^2``, d the fraction of linear weights that gates are expected to leave, in closed form, and t the
    target, which falls linearly from 1 to `target_density`; the multipliers l1 and l2 ascend, weights and gates descend
    (equation 2). In evaluation as many gates of a vector are 0 as are expected to be, those of the lowest scores, and
    the others are ``sigmoid(0.8 S / b)``, b = 2/3. For encoders whose sub-layers end in a norm: BERT and its like.

    It departs from the published code in that gates come to rest before the end of training, as evaluation has them:
    all scores are shifted alike first, so that the network has the size that was asked for, and then only weights
    learn. Scores start alike; the sub-layer's gate multiplies no bias, and a dimension's what goes out of norms but not
    what goes in; and as elsewhere here, learning rates of scores and multipliers rise and fall as that of the weights.

    Args:
        target_density: Fraction of the linear weights to keep, in (0, 1); the paper's sparsity is what is missing to 1.
        prune_hidden: Whether dimensions of the residual stream go, too: of embeddings, norms and all that reads or
            writes it.
        ramp: Part of the schedule, in (0, 1], over which the target falls from 1 to there. The paper takes a tenth, in
            runs of many steps.
        gate_learning_rate: Learning rate of scores and multipliers, above 0. Default: 1e-2 as in the paper, and more in
            runs of fewer than about 5,500 optimizer steps, in which scores could not travel far enough.
        initial_warmup: Length of training before gates may shut, in multiples of the learning-rate warm-up.
        final_warmup: Length of training after they have come to rest, in multiples of the learning-rate warm-up.
    """

    target: Tensor

    def __init__(
        self,
        target_density: float = 0.4,
        prune_hidden: bool = True,
        ramp: float = 0.5,
        gate_learning_rate: float | None = None,
        initial_warmup: float = 1.0,
        final_warmup: float = 4.0,
    ) -> None:
        super().__init__()
        if not 0 < target_density < 1:
            raise UserError(f"target_density is {target_density:g}; it is the fraction kept and must be in (0, 1).")
        if not 0 < ramp <= 1:
            raise UserError(f"ramp is {ramp:g}; it is a part of the schedule and must be in (0, 1].")
        if gate_learning_rate is not None and not gate_learning_rate > 0:
            raise UserError(f"gate_learning_rate is {gate_learning_rate:g}; it must be above 0. The paper takes 0.01.")
        for name, value in (("initial_warmup", initial_warmup), ("final_warmup", final_warmup)):
            if not value >= 0:
                raise UserError(
                    f"{name} is {value:g}; it must be 0 or more, in multiples of the learning-rate warm-up."
                )
        self.target_density = target_density
        self.prune_hidden = prune_hidden
        self.ramp = ramp
        self.gate_learning_rate = gate_learning_rate
        self.initial_warmup = initial_warmup
        self.final_warmup = final_warmup
        self.phase = Phase()
        self._model: tuple[nn.Module, ...] = ()
        self.sublayers = nn.ModuleDict()
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.register_buffer("target", torch.tensor(1.0))
        self._step = self._batches = 0

    # -- the gates -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def attach(self, layout: PrunableLayout) -> None:
        refuse_others(layout)
        if self.prune_hidden:
            require_narrowable(layout)
        groups = [group for group in layout.groups if size_of(group) and not is_skipped(layout.model, group)]
        device = groups[0].members[0].weight(layout.model).device
        for kind in dict.fromkeys(map(kind_of, groups)):
            alike = [group for group in groups if kind_of(group) == kind]
            self.sublayers[kind] = sublayers = Sublayers(len(alike)).to(device)
            for index, group in enumerate(alike):
                mask = _mask(layout, group)
                self.add_mask(group.name, mask, layout)
                mask.gate = Gate(mask, self.phase, sublayers, index)
                skip_when_shut(layout.model, group, mask)
        self._model = (layout.model,)  # in a tuple, which hides it from `state_dict`
        if self.prune_hidden:
            covers = narrowing_covers(layout)
            total = sum(cover.member.weight(layout.model).numel() for cover in covers)
            mask = Mask(STREAM, covers, (stream_width(layout), 1), total)
            self.add_mask(STREAM, mask, layout)
            mask.gate = Gate(mask, self.phase)
        for index, scores in enumerate(self._all_scores()):
            self.register_buffer(f"rest_{index}", scores.fill_(FIRST_SCORE).detach().clone())
        nn.Module.to(self, device)
        self._drawing = layout.model.register_forward_pre_hook(self._draw)

    def _draw(self, model: nn.Module, inputs: Any) -> None:
        """New gates for a batch; as with dropout, the model's mode says whether they are random."""
        if not (model.training and self.phase.random):
            for mask in self.all_masks:
                mask.settle()
            return
        generator = generator_of(step=self._step, batch=self._batches, device=self.target.device)
        for drawn in (*self.all_masks, *self._sublayers):
            drawn.draw(generator)
        self._batches += 1

    @property
    def _sublayers(self) -> list[Sublayers]:
        return cast(list[Sublayers], list(self.sublayers.values()))

    def _gate(self, mask: Mask) -> Gate:
        return cast(Gate, mask.gate)

    # -- the size ------------------------------------------------------------------------------------------------------

    def expected_density(self) -> Tensor:
        """The fraction of linear weights that random gates are expected to leave, a 0-d tensor."""
        opens = {id(each): chance_open(each.scores) for each in self._sublayers}
        parts = []
        for mask in self._in_sublayers:
            gate = self._gate(mask)
            chances = chance_open(cast(Tensor, mask.scores)).flatten()
            parts.append(Part(mask.total_weights, opens[id(gate.sublayers)][gate.index], chances))
        return left(parts, dimensions=chance_open(cast(Tensor, self._stream.scores)) if self._stream else None)

    @torch.no_grad()
    def density(self) -> dict[str, Tensor]:
        if not len(self.masks):
            return {}
        roles = dict.fromkeys(mask.role for mask in self._in_sublayers)
        found = {role: self._kept([mask for mask in self._in_sublayers if mask.role == role]) for role in roles}
        if self._stream is not None:
            found[STREAM] = self._stream.kept.float().mean()
        return found | {"total": self._kept()}

    def _kept(self, masks: list[Mask] | None = None) -> Tensor:
        """The fraction that the masks of this moment keep of all linear weights, or of those of some sub-layers."""
        masks = self._in_sublayers if masks is None else masks
        one = torch.ones_like(self.target)
        parts = [Part(mask.total_weights, one, mask.kept.flatten().float()) for mask in masks]
        return left(parts, dimensions=self._stream.kept.float() if self._stream else None)

    @property
    def _stream(self) -> Mask | None:
        return cast(Mask, self.masks[STREAM]) if STREAM in self.masks else None

    @property
    def _in_sublayers(self) -> list[Mask]:
        return [mask for mask in self.all_masks if mask is not self._stream]

    def _set_kept(self, shift: float | Tensor = 0.0, *, of_sublayers: float | Tensor = 0.0) -> None:
        """Keep what evaluation's gates let through, with scores shifted."""
        for sublayers in self._sublayers:
            open_N = kept_in_evaluation(sublayers.scores + of_sublayers)
            for mask in self._in_sublayers:
                if (gate := self._gate(mask)).sublayers is sublayers:
                    mask.set_grid(kept_in_evaluation(cast(Tensor, mask.scores) + shift) & open_N[gate.index])
        if self._stream is not None:
            self._stream.set_grid(kept_in_evaluation(cast(Tensor, self._stream.scores) + shift))

    def _land(self) -> None:
        """Shift scores so that what is kept has the size that was asked for, or a little less.

        Sub-layers are too large to land by, and are shifted only where what is in them would not be enough.
        """

        def not_enough(shift: Tensor) -> Tensor:
            self._set_kept(FARTHEST, of_sublayers=shift)
            return self._kept() < self.target_density

        def too_little(shift: Tensor) -> Tensor:
            self._set_kept(shift, of_sublayers=of_sublayers)
            return self._kept() <= self.target_density

        of_sublayers = self._shift(not_enough, low=0.0)[1]
        of_sublayers = torch.where(not_enough(torch.zeros_like(of_sublayers)), of_sublayers, 0)
        shift, _ = self._shift(too_little, low=-FARTHEST)
        self._set_kept(shift, of_sublayers=of_sublayers)
        for scores, held, shifted in self._held():
            scores.add_(of_sublayers if shifted else shift)
            held.copy_(scores)

    def _shift(self, below: Callable[[Tensor], Tensor], *, low: float) -> tuple[Tensor, Tensor]:
        """Two shifts next to each other: the last for which something is `below`, and the first for which it is not."""
        last, first = torch.full_like(self.target, low), torch.full_like(self.target, FARTHEST)
        for _ in range(HALVINGS):
            middle = (last + first) / 2
            found = below(middle)
            last, first = torch.where(found, middle, last), torch.where(found, first, middle)
        return last, first

    def _held(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Scores, where they come to rest, and whether they are of sub-layers."""
        for index, scores in enumerate(self._all_scores()):
            yield scores, self.get_buffer(f"rest_{index}"), index >= len(self.masks)

    def _all_scores(self) -> list[Tensor]:
        return [*(cast(Tensor, mask.scores) for mask in self.all_masks), *(each.scores for each in self._sublayers)]

    # -- training ------------------------------------------------------------------------------------------------------

    def _window(self, progress: Progress) -> tuple[int, int]:
        return pruning_window(
            total_steps=progress.total_steps,
            warmup_steps=progress.warmup_steps,
            initial_warmup=self.initial_warmup,
            final_warmup=self.final_warmup,
        )

    @torch.no_grad()
    def advance(self, progress: Progress) -> None:
        start, end = self._window(progress)
        self._step, self._batches = progress.step, 0
        part = min(max((progress.step - start) / (self.ramp * (end - start)), 0.0), 1.0)
        self.target.fill_(1 - (1 - self.target_density) * part)
        self._enter(begun=progress.step >= start, landed=self.phase.landed)
        if self.phase.landed:
            return
        if progress.step >= end:
            self._land()
            self._enter(begun=True, landed=True)
        elif self.phase.begun:
            self._set_kept()

    def _enter(self, *, begun: bool, landed: bool) -> None:
        self.phase.begun, self.phase.landed = begun, landed
        for model in self._model:
            set_narrowing(model, narrows=begun)

    def target_reached(self, progress: Progress) -> bool:
        return progress.step >= self._window(progress)[1]

    def penalty(self) -> Tensor:
        too_much = self.expected_density() - self.target
        # They ascend where the optimizer descends.
        linear, quadratic = 2 * self.multipliers.detach() - self.multipliers
        # By 0 where gates do not learn: distributed training wants a gradient of each of them all the same.
        return (linear * too_much + quadratic * too_much.square()) * float(self.phase.random)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        if self.phase.landed:  # an optimizer goes on by its momentum
            for scores, held, _ in self._held():
                scores.copy_(held)
        elif self.phase.begun:
            for scores in self._all_scores():
                scores.clamp_(-LIMIT, LIMIT)

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        rate = self.gate_learning_rate
        if rate is None:  # Adam moves a score by at most about its learning rate a step
            rate = max(LEARNING_RATE, TRAVEL * 2 * LIMIT / total_steps)
        return [
            {"params": self._all_scores(), "lr": rate, "weight_decay": 0.0, "name": "scores"},
            {"params": [self.multipliers], "lr": rate, "weight_decay": 0.0, "name": "multipliers"},
        ]

    def metrics(self) -> dict[str, Tensor | float]:
        linear, quadratic = self.multipliers.detach()
        with torch.no_grad():
            expected = self.expected_density()
        return {"expected_density": expected, "target": self.target, "linear": linear, "quadratic": quadratic}

    # -- the end -------------------------------------------------------------------------------------------------------

    def harden(self, layout: PrunableLayout) -> None:
        self._drawing.remove()
        for mask in self.all_masks:
            mask.settle()
        settle_skips(layout)
        stream = self._stream
        super().harden(layout)
        if stream is not None:
            clear_dimensions(layout, stream.kept.flatten())
        self._model = ()

    def get_extra_state(self) -> Tensor:
        """The phase: what the host knows, and no buffer, for each forward pass asks for it."""
        return torch.tensor([self.phase.begun, self.phase.landed])

    def set_extra_state(self, state: Tensor) -> None:
        begun, landed = state.tolist()
        self._enter(begun=begun, landed=landed)


def refuse_others(layout: PrunableLayout) -> None:
    """Refuse a model of which it is not known where a sub-layer's output is added and normalized.

    Raises:
        UserError: It is such a model, or nothing is left of it.
    """
    model: Any = layout.model
    if unknown := [group.name for group in layout.groups if group.adds is None]:
        raise UserError(
            f"cofi prunes encoders whose sub-layers each end in a LayerNorm of the residual stream: BERT, RoBERTa, "
            f"CamemBERT, XLM-RoBERTa and ELECTRA. Of a {model.config.model_type!r} model it does not know where "
            f"{unknown[0]} ends: take another strategy, such as hybrid or l0."
        )
    if not any(size_of(group) for group in layout.groups):
        raise UserError("cofi finds no head and no unit left to prune: give a model that has some.")


def _mask(layout: PrunableLayout, group: Group) -> Mask:
    """A gate for each head or unit, on what reads it; with it goes what only it reads."""
    *readers, writer = group.members
    covers = (Cover(writer, transposed=True), *(Cover(reader, idle=True) for reader in readers))
    total = sum(member.weight(layout.model).numel() for member in group.members)
    entries = group.kv_heads if isinstance(group, AttentionGroup) else group.width
    return Mask(group.role, covers, (entries, 1), total)
