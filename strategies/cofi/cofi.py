"""CoFi: coarse and fine gates at once (Xia, Zhong, Chen 2022, arXiv 2204.00408).

Legend: `N` gates of one vector, `R`, `C` grid rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bplightning.compaction.narrow_stream import clear_dimensions, narrowing_covers, require_narrowable, set_narrowing
from bplightning.compaction.plan import STREAM
from bplightning.compaction.skipped_sublayers import is_skipped, settle_skips, skip_when_shut
from bplightning.contracts.capabilities import Advising, LearnsFromTeacher
from bplightning.contracts.strategy import Capability, Progress
from bplightning.contracts.target import NO_TARGET, Target
from bplightning.contracts.targeted import Targeted
from bplightning.contracts.window import PruningWindow
from bplightning.distillation.distillation import states_width
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import kind_of, size_of, stream_width
from bplightning.masks.masking import Mask
from bplightning.strategies.cofi.gated_groups import mask_of, refuse_others
from bplightning.strategies.cofi.gated_size import GatedSize
from bplightning.strategies.cofi.gates import FIRST_SCORE, Gate, Phase, Sublayers
from bplightning.strategies.cofi.layer_matching import layer_distance, taught_layers
from bplightning.strategies.shared.seeded_generator import generator_of
from bplightning.strategies.shared.targets import require_pruning

LIMIT = math.log(100)
"""Scores are held within it on either side once pruning has begun."""

LEARNING_RATE = 1e-2
"""The paper's learning rate of scores and multipliers."""

TRAVEL = 6.0
"""How far scores can travel in a run whose rate follows from its length, in ways from one limit to the other."""

UNTIL_REST = PruningWindow(initial_warmup=1.0, final_warmup=4.0)
"""Gates come to rest early enough for the weights to learn with them."""


class CoFi(Targeted, LearnsFromTeacher, Advising):
    """Heads, units, sub-layers and width, by random gates.

    Multiplies heads, feed-forward units and whole sub-layers by random gates, held to a size.

    Each of these has a hard concrete gate (arXiv 1712.01312), and a head or unit is multiplied by its own and by its
    sub-layer's (arXiv 2204.00408, section 3.1): on the columns of the output and down projections, where the product
    of value and gate is formed. So has each dimension of the residual stream, one gate for all layers: on the norms,
    which count only dimensions whose gates are open. A sub-layer wholly shut is skipped, and its norm with it.

    The penalty is ``l1 |d - t| + l2 (d - t)^2``, d the fraction of linear weights that gates are expected to leave, in
    closed form, and t the target, which falls linearly from 1 to the given density; the multipliers l1 and l2 ascend,
    weights and gates descend (equation 2). In evaluation as many gates of a vector are 0 as are expected to be, those
    of the lowest scores, and the others are ``sigmoid(0.8 S / b)``, b = 2/3. From a teacher, where there is one, the
    model also learns layer by layer; which layer learns from which is found anew in each batch (section 3.2).

    For encoders whose sub-layers end in a norm: BERT and its like. It departs from the paper in that the linear term
    has no sign, for with one it holds on to what it gathered while gates were still far from shutting, and overshoots;
    and in that gates come to rest before the end of training, as evaluation has them: all scores are shifted alike
    first, so that the network has the size that was asked for, and then only weights learn. Scores start alike; the
    sub-layer's gate multiplies no bias, and a dimension's what goes out of norms but not what goes in; padding does
    not count in distances of layers; and as elsewhere here, learning rates of scores and multipliers rise and fall as
    that of the weights.

    Args:
        target: What to keep of the linear weights: a density, 0.4 by default; the paper's sparsity is what is missing
            to 1.
        prune_hidden: Whether dimensions of the residual stream go, too: of embeddings, norms and all that reads or
            writes it.
        alpha_layer: Weight of the distance to the teacher's layers, 0 or more; it counts only with a teacher
            (`distillation.teacher`), and 0 leaves it out. The paper takes 0.9 to 0.5.
        ramp: Part of the schedule, in (0, 1], over which the target falls from 1 to there. The paper takes a tenth, in
            runs of many steps.
        gate_learning_rate: Learning rate of scores and multipliers, above 0. Default: 1e-2 as in the paper, and more in
            runs of fewer than about 5,500 optimizer steps, in which scores could not travel far enough.
        window: When gates may shut. At its end they come to rest and stay as they are in any case, with
            `freeze_masks` false too.
    """

    collapse_remedies: ClassVar[tuple[str, ...]] = (
        "a greater strategy.window.initial_warmup",
        "a greater strategy.ramp",
    )
    default_target: ClassVar[Target] = Target(density=0.4)
    older_names: ClassVar[Mapping[str, str]] = {"target": "target_now"}
    target_now: Tensor

    def __init__(
        self,
        target: Target = NO_TARGET,
        prune_hidden: bool = True,
        alpha_layer: float = 0.9,
        ramp: float = 0.5,
        gate_learning_rate: float | None = None,
        window: PruningWindow = UNTIL_REST,
    ) -> None:
        super().__init__()
        self.take_target(target)
        require_pruning(self.target)
        if not alpha_layer >= 0:
            raise UserError(f"alpha_layer is {alpha_layer:g}; it must be 0 or more. The paper takes 0.9.")
        if not 0 < ramp <= 1:
            raise UserError(f"ramp is {ramp:g}; it is a part of the schedule and must be in (0, 1].")
        if gate_learning_rate is not None and not gate_learning_rate > 0:
            raise UserError(f"gate_learning_rate is {gate_learning_rate:g}; it must be above 0. The paper takes 0.01.")
        assert self.target.density is not None, "there is a default"
        self.target_density = self.target.density
        self.prune_hidden = prune_hidden
        self.alpha_layer = alpha_layer
        self.learns_from_layers = alpha_layer > 0
        self.ramp = ramp
        self.gate_learning_rate = gate_learning_rate
        self.window = window
        self.phase = Phase()
        self._model: tuple[nn.Module, ...] = ()
        self.sublayers = nn.ModuleDict()
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.register_buffer("target_now", torch.tensor(1.0))
        self._step = self._batches = 0
        self._distance: Tensor | None = None

    # -- the gates -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def attach(self, layout: PrunableLayout) -> None:
        refuse_others(layout)
        if self.prune_hidden:
            try:
                require_narrowable(layout)
            except UserError as error:
                raise UserError(f"{error} With prune_hidden false cofi leaves the width as it is.") from error
        groups = [group for group in layout.groups if size_of(group) and not is_skipped(layout.model, group)]
        device = groups[0].members[0].weight(layout.model).device
        for kind in dict.fromkeys(map(kind_of, groups)):
            alike = [group for group in groups if kind_of(group) == kind]
            self.sublayers[kind] = sublayers = Sublayers(len(alike)).to(device)
            for index, group in enumerate(alike):
                mask = mask_of(layout, group)
                self.add_mask(group.name, mask, layout)
                mask.gate = Gate(mask, self.phase, sublayers, index)
                skip_when_shut(layout.model, group, mask)
        if self.alpha_layer:
            self.layer_map = nn.Parameter(torch.eye(stream_width(layout)))
        self._feed_forward = {group.layer: group.name for group in groups if kind_of(group) == "units"}
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
        generator = generator_of(step=self._step, batch=self._batches, device=self.target_now.device)
        for mask in self.all_masks:
            mask.draw(generator)
        for sublayers in self._sublayers:
            sublayers.draw(generator)
        self._batches += 1

    @property
    def _sublayers(self) -> list[Sublayers]:
        return cast(list[Sublayers], list(self.sublayers.values()))

    def _all_scores(self) -> list[Tensor]:
        """Those of sub-layers last."""
        return [*(cast(Tensor, mask.scores) for mask in self.all_masks), *(each.scores for each in self._sublayers)]

    @property
    def _size(self) -> GatedSize:
        stream = cast(Mask, self.masks[STREAM]) if STREAM in self.masks else None
        return GatedSize([mask for mask in self.all_masks if mask is not stream], stream)

    @torch.no_grad()
    def density(self) -> dict[str, Tensor]:
        if not len(self.masks):
            return {}
        size = self._size
        found = {role: size.kept(role) for role in dict.fromkeys(mask.role for mask in size.masks)}
        if size.stream is not None:
            found[STREAM] = size.stream.kept.float().mean()
        return found | {"total": size.kept()}

    # -- training ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(self, progress: Progress) -> None:
        start, end = self.window.steps(progress)
        self._step, self._batches = progress.step, 0
        part = min(max((progress.step - start) / (self.ramp * (end - start)), 0.0), 1.0)
        self.target_now.fill_(1 - (1 - self.target_density) * part)
        self._enter(begun=progress.step >= start, landed=self.phase.landed)
        if self.phase.landed:
            return
        if progress.step >= end:
            shifts = self._size.land(self.target_density)
            for index, scores in enumerate(self._all_scores()):
                self.get_buffer(f"rest_{index}").copy_(scores.add_(shifts[index >= len(self.masks)]))
            self._enter(begun=True, landed=True)
        elif self.phase.begun:
            self._size.set_kept()

    def _enter(self, *, begun: bool, landed: bool) -> None:
        self.phase.begun, self.phase.landed = begun, landed
        for model in self._model:
            set_narrowing(model, narrows=begun)

    def target_reached(self, progress: Progress) -> bool:
        return self.window.ended(progress)

    def penalty(self) -> Tensor:
        off = self._size.expected() - self.target_now
        # They ascend where the optimizer descends.
        linear, quadratic = 2 * self.multipliers.detach() - self.multipliers
        # By 0 where gates do not learn: distributed training wants a gradient of each of them all the same.
        penalty = (linear * off.abs() + quadratic * off.square()) * float(self.phase.random)
        return penalty + self.layer_map.flatten()[:0].sum() if self.learns_from_layers else penalty

    def capability(self, kind: type[Capability]) -> Capability | None:
        return super().capability(kind) if self.learns_from_layers or kind is not LearnsFromTeacher else None

    def meet_teacher(self, teacher: nn.Module) -> None:
        theirs = states_width(teacher)
        if theirs != len(self.layer_map):
            raise UserError(
                f"cofi's alpha_layer is {self.alpha_layer:g}, but the teacher's hidden states have {theirs} numbers "
                f"and the model's {len(self.layer_map)}: take a teacher of the same width, or set alpha_layer to 0."
            )

    def layer_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BL: Tensor | None) -> Tensor:
        layers, none = range(len(student) - 1), torch.zeros_like(self.target_now).bool()
        masks = {layer: cast(Mask, self.masks[name.replace(".", "-")]) for layer, name in self._feed_forward.items()}
        distance = layer_distance(
            student[1:],
            [teacher[layer] for layer in taught_layers(len(teacher) - 1)],
            map_HH=self.layer_map,
            live_S=torch.stack([masks[layer].any_open() if layer in masks else none for layer in layers]),
            mask_BL=mask_BL,
        )
        self._distance = distance.detach()
        return self.alpha_layer * distance

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        if self.phase.landed:  # an optimizer goes on by its momentum
            for index, scores in enumerate(self._all_scores()):
                scores.copy_(self.get_buffer(f"rest_{index}"))
        elif self.phase.begun:
            for scores in self._all_scores():
                scores.clamp_(-LIMIT, LIMIT)

    def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
        rate = self.gate_learning_rate
        if rate is None:  # Adam moves a score by at most about its learning rate a step
            rate = max(LEARNING_RATE, TRAVEL * 2 * LIMIT / total_steps)
        groups: list[dict[str, Any]] = [
            {"params": self._all_scores(), "lr": rate, "weight_decay": 0.0, "name": "scores"},
            {"params": [self.multipliers], "lr": rate, "weight_decay": 0.0, "name": "multipliers"},
        ]
        if self.learns_from_layers:  # at the learning rate of the weights
            groups.append({"params": [self.layer_map], "weight_decay": 0.0, "name": "layer_map"})
        return groups

    def metrics(self) -> dict[str, Tensor | float]:
        linear, quadratic = self.multipliers.detach()
        with torch.no_grad():
            expected = self._size.expected()
        found = {"expected_density": expected, "target": self.target_now, "linear": linear, "quadratic": quadratic}
        return found if self._distance is None else found | {"layer_distance": self._distance}

    # -- the end -------------------------------------------------------------------------------------------------------

    def harden(self, layout: PrunableLayout) -> None:
        self._drawing.remove()
        for mask in self.all_masks:
            mask.settle()
        settle_skips(layout)
        stream = self._size.stream
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
