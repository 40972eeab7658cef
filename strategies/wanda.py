"""Wanda: pruning by weights and activations (Sun, Liu, Bair, Kolter 2023, arXiv 2306.11695)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bplightning.contracts.capabilities import OneShot
from bplightning.contracts.target import NO_TARGET, Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.groups import Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask
from bplightning.strategies.shared.layer_inputs import mask_name, real_rows
from bplightning.strategies.shared.top_k import TopK
from bplightning.strategies.shared.wanda_scores import keep_per_row, wanda_scores

AT_ONCE = PruningWindow(initial_warmup=0.0, final_warmup=0.0)
"""Nothing is trained, so there is nothing to wait for."""


class Wanda(TopK, OneShot):
    """Weights by magnitude times input norm, without training.

    Keeps the weights whose magnitude times the norm of their inputs is largest, without training (`prune`).

    ``|W_ij| * ||X_j||``, the norm over all calibration tokens, compared within each row of a weight (arXiv 2306.11695,
    equation 1 and section 3). Nothing is updated. It departs from the paper in that all norms are those of the dense
    network, found in one pass, where the paper prunes layer after layer; and it knows other granularities, of which a
    tile is worth the mean of its weights: by head and unit, which is what becomes smaller and faster.

    Args:
        target: What to keep: a density, half by default as in the paper. An N:M granularity keeps its own, and no
            target can be given where all are N:M.
        granularity: What is kept or dropped as one, by role (attention, feed_forward, decoder_attention,
            cross_attention, decoder_feed_forward): element, row, column, a block such as 32x32 (rows x columns), N:M
            such as 2:4, head (attention) or unit (feed-forward). Default: element; a decoder's as the encoder's.
        scope: Where weights compete: `row`, within each row of a matrix, as in the paper; where whole rows, heads or
            units are kept, and with `local`, within each layer's matrix; or `global`, in one ranking of the whole
            model.
    """

    learns_scores: ClassVar[bool] = False
    default_target: ClassVar[Target] = Target(density=0.5)

    def __init__(
        self,
        target: Target = NO_TARGET,
        granularity: dict[str, str] | None = None,
        scope: Literal["row", "local", "global"] = "row",
    ) -> None:
        super().__init__(target, granularity, "local" if scope == "row" else scope, AT_ONCE)
        self.by_row = scope == "row"

    def attach(self, layout: PrunableLayout) -> None:
        stacked = next((member for member in layout.members if member.expert is not None), None)
        if stacked is not None:
            raise UserError(
                f"what {stacked.name} of stacked experts is multiplied with cannot be seen from outside of it: take "
                "moe-pruner, which with router_weighted false does the same for experts."
            )
        super().attach(layout)
        for member in self._members():  # 1 before calibration: magnitude then
            weight_OI = member.weight(layout.model)
            norm_I = torch.ones(weight_OI.shape[1], device=weight_OI.device)
            self.register_buffer(_key(member.module), norm_I)

    @torch.no_grad()
    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[dict[str, Tensor]],
        loss_fn: Callable[[Any, dict[str, Tensor]], Tensor],
    ) -> None:
        masked = set(self._members())
        readers = {
            member.module: mask_name(model, group, member)
            for group in self.layout.groups
            for member in group.members
            if member in masked
        }
        norms = {name: self.get_buffer(_key(name)) for name in readers}
        squares = {name: torch.zeros_like(norm_I, dtype=torch.float64) for name, norm_I in norms.items()}
        batch: dict[str, Tensor] | None = None

        def see(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
            squares[name] += real_rows(given[0], (batch or {}).get(readers[name])).float().square().sum(0)

        with ExitStack() as stack:
            for name in readers:
                handle = model.get_submodule(name).register_forward_pre_hook(partial(see, name))
                stack.callback(handle.remove)
            for batch in batches:
                model(**batch)
        if batch is None:  # norms of nothing are 0, and any weights would go
            raise UserError("there was no batch to calibrate with: give some training data.")
        for name, norm_I in norms.items():
            norm_I.copy_(squares[name].sqrt())

    def worth(self, mask: Mask) -> Tensor:
        return mask.pooled(
            lambda member: wanda_scores(member.weight(self.layout.model), self.get_buffer(_key(member.module)))
        )

    def keep(self, values_RC: Tensor, density: float) -> Tensor:
        if self.by_row and values_RC.shape[1] > 1:
            return keep_per_row(values_RC, density)
        return super().keep(values_RC, density)

    def _members(self) -> list[Member]:
        return [cover.member for mask in self.all_masks for cover in mask.covers]


def _key(module: str) -> str:
    """Name of the buffer with the norms of what goes into a module."""
    return f"norm_{module.replace('.', '-')}"
