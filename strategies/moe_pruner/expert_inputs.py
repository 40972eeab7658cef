"""What goes into the weights of one layer, gathered over calibration batches; into experts' by what is routed to them.

Legend: `B` batch, `L` tokens of a row, `T` tokens of a batch, `I` in features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.layout.groups import FeedForwardGroup, Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group
from bplightning.strategies.moe_pruner.scores import expert_units, routed, squared_norms
from bplightning.strategies.shared.layer_inputs import mask_name, real_rows


class LayerInputs:
    """Gathers the squared norms of inputs of a layer's matrices, without padding, as the model runs.

    Args:
        layout: What can be pruned of the model.
        groups: The layer's groups.
        router_weighted: Whether an expert's tokens count by their router weights.
    """

    def __init__(self, layout: PrunableLayout, groups: Sequence[Group], *, router_weighted: bool) -> None:
        self._model: Any = layout.model
        self._weighted = router_weighted
        self._experts: dict[str, list[FeedForwardGroup]] = {}
        self._others: dict[str, list[tuple[Group, Member]]] = {}
        for group in groups:
            if isinstance(group, FeedForwardGroup) and group.router is not None:
                self._experts.setdefault(group.down.module, []).append(group)
            else:
                for member in group.members:
                    self._others.setdefault(member.module, []).append((group, member))
        self._sums: dict[Member, Tensor] = {
            member: member.weight(layout.model).new_zeros(member.weight(layout.model).shape[1], dtype=torch.float64)
            for group in groups
            for member in group.members
        }
        self._batch: dict[str, Tensor] = {}

    def gather(self, batches: Iterable[dict[str, Tensor]]) -> dict[Member, Tensor]:
        """Run the model over batches.

        Args:
            batches: What the model takes, each.

        Returns:
            Each matrix to the norm of its input features over all tokens, float64 ``(I,)``; zeros for an expert
            that no token was routed to.

        Raises:
            UserError: There is no batch.
        """
        hooks = [
            self._model.get_submodule(name).register_forward_pre_hook(hook)
            for watched, hook in ((self._experts, self._see_experts), (self._others, self._see))
            for name in watched
        ]
        self._names = {self._model.get_submodule(name): name for name in (*self._experts, *self._others)}
        try:
            for batch in batches:
                self._batch = batch
                self._model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not self._batch:  # all would look like experts that no token was routed to
            raise UserError("there was no batch to calibrate with: give some training data.")
        return {member: sums.sqrt() for member, sums in self._sums.items()}

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        readers = self._others[self._names[module]]
        mask_BL = self._batch.get(mask_name(self._model, *readers[0]))
        found_I = squared_norms(inputs_TI=real_rows(inputs[0], mask_BL))
        for _, member in readers:
            self._add(member, found_I)

    def _see_experts(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        groups = self._experts[self._names[module]]
        mask_BL = self._batch.get(mask_name(self._model, groups[0], groups[0].down))
        hidden_TH, indices_TK, weights_TK = (real_rows(each, mask_BL) for each in inputs)
        stacked = {name: getattr(module, name) for name in module._parameters}  # as masked by now, each read once
        for group in groups:
            assert group.down.expert is not None
            tokens, weights = routed(indices_TK=indices_TK, weights_TK=weights_TK, expert=group.down.expert)
            inputs_TH, scale = hidden_TH[tokens], weights if self._weighted else None
            up = tuple(member.view(stacked[member.parameter]) for member in group.up)
            units_TF = expert_units(
                inputs_TH=inputs_TH, up=up, activation=operator.attrgetter(group.activation)(self._model)
            )
            found_I = squared_norms(inputs_TI=inputs_TH, weights_T=scale)
            for member in group.up:
                self._add(member, found_I)
            self._add(group.down, squared_norms(inputs_TI=units_TF, weights_T=scale))

    def _add(self, member: Member, found_I: Tensor) -> None:
        self._sums[member] += found_I
