"""Attention layers without heads in families where more is left to compute than the output projection's constant.

Legend: `B` batch, `L` tokens, `P` relative positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bplightning.layout.instance_mixin import Mixin, mix_in


class AddsAndNormalizes(Mixin):
    """For ALBERT, whose attention module also adds its input to its output and normalizes the sum."""

    LayerNorm: nn.Module
    output_dropout: nn.Module

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The sum of input ``(B, L, hidden size)`` and constant, normalized."""
        output, weights = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return self.LayerNorm(hidden_states + self.output_dropout(output)), weights


class ReadsPositions(Mixin):
    """For DeBERTa, whose layers share one table of relative positions, which must not become unused."""

    key_proj: nn.Module

    def forward(
        self, hidden_states: Tensor, *args: Any, rel_embeddings: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The constant; the table ``(P, hidden size)`` is used without contributing, as the projections are."""
        output, weights = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return output if rel_embeddings is None else output + self.key_proj(rel_embeddings).sum(), weights


def when_headless(mixin: type[Mixin]) -> Callable[[nn.Module, Any, Tensor], None]:
    """The `Family.resized` of a family whose attention layers without heads do what `mixin` adds."""

    def resized(model: nn.Module, group: Any, kept: Tensor) -> None:
        if hasattr(group, "heads") and len(kept) == 0:
            mix_in(model.get_submodule(group.module), mixin)

    return resized
