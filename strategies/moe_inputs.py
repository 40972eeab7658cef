"""What goes into the weights of one layer, gathered over calibration batches; into experts' by what is routed to them.

Legend: `B` batch, `L` tokens of a row, `T` tokens of a batch, `I` in features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.groups import FeedForwardGroup, Member
from bplightning.layout import PrunableLayout
from bplightning.resizing import Group
from bplightning.strategies.moe_scores import expert_units, routed, squared_norms


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
        self._others: dict[str, list[Member]] = {}
        for group in groups:
            if isinstance(group, FeedForwardGroup) and group.router is not None:
                self._experts.setdefault(group.down.module, []).append(group)
            else:
                for member in group.members:
                    self._others.setdefault(member.module, []).append(member)
        self._sums: dict[Member, Tensor] = {
            member: member.weight(layout.model).new_zeros(member.weight(layout.model).shape[1], dtype=torch.float64)
            for group in groups
            for member in group.members
        }
        self._real_T: Tensor | None = None

    def gather(self, batches: Iterable[dict[str, Tensor]]) -> dict[Member, Tensor]:
        """Run the model over batches.

        Args:
            batches: What the model takes, each.

        Returns:
            Each matrix to the norm of its input features over all tokens, of all ranks together, float64 ``(I,)``;
            zeros, for an expert that no token was routed to.
        """
        hooks = [
            self._model.get_submodule(name).register_forward_pre_hook(hook)
            for watched, hook in ((self._experts, self._see_experts), (self._others, self._see))
            for name in watched
        ]
        self._names = {self._model.get_submodule(name): name for name in (*self._experts, *self._others)}
        try:
            for batch in batches:
                mask_BL = batch.get("attention_mask")
                self._real_T = None if mask_BL is None else mask_BL.flatten().bool()
                self._model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        return self._norms()

    def _norms(self) -> dict[Member, Tensor]:
        sums = torch.cat(list(self._sums.values()))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)  # every rank prunes by the tokens of all
        parts = sums.sqrt().split([len(each) for each in self._sums.values()])
        return dict(zip(self._sums, parts, strict=True))

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found_I = squared_norms(inputs_TI=self._real(inputs[0].flatten(0, -2)))
        for member in self._others[self._names[module]]:
            self._add(member, found_I)

    def _see_experts(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden_TH, indices_TK, weights_TK = (self._real(each) for each in inputs)
        stacked = {name: getattr(module, name) for name in module._parameters}  # as masked by now, each read once
        for group in self._experts[self._names[module]]:
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

    def _real(self, values_TI: Tensor) -> Tensor:
        """Those of tokens, where padding can be told from them."""
        real = self._real_T
        return values_TI if real is None or len(real) != len(values_TI) else values_TI[real.to(values_TI.device)]

    def _add(self, member: Member, found_I: Tensor) -> None:
        self._sums[member] += found_I
