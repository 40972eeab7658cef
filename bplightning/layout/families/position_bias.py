"""Attention layers of one stack that share a table of relative position biases, with one column per head.

The owner of the table computes a bias for every column and passes it to all layers. A layer that lost heads must select
the columns of its remaining heads; so must the owner itself.

Legend: `B` batch, `L` tokens, `S` tokens attended to, `H` heads of this layer, `C` columns of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bplightning.layout.instance_mixin import Mixin, mix_in


class PositionColumns(Mixin):
    """Mixed into the class of an attention module that lost heads: it selects its columns of the position bias.

    Attributes:
        position_columns: The column that each of its heads looks up, ``(H,)``.
    """

    position_columns: Tensor

    def own_columns(self, bias_1CLS: Tensor) -> Tensor:
        """The position bias of this layer's heads, ``(1, H, L, S)``."""
        if self.position_columns.device != bias_1CLS.device:
            self.position_columns = self.position_columns.to(bias_1CLS.device)
        return bias_1CLS.index_select(1, self.position_columns)


class BiasFromStack(PositionColumns):
    """For MPNet, where the encoder computes the bias."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, position_bias: Any = None, **kwargs: Any
    ) -> Any:
        """As the original does, with this layer's columns of `position_bias`."""
        own = None if position_bias is None else self.own_columns(position_bias)
        output, *weights = super().forward(hidden_states, attention_mask, own, **kwargs)  # type: ignore[misc]
        if own is not None and own.shape[1] == 0:
            output = output + own.sum()  # adds nothing, but uses the empty table, as in `Headless`
        return output, *weights


class BiasFromFirstLayer(PositionColumns):
    """For T5, where the first layer computes the bias and returns it along with its output for the layers after it."""

    layer_idx: int
    compute_bias: Callable[..., Tensor]

    def forward(self, hidden_states: Tensor, position_bias: Tensor | None = None, **kwargs: Any) -> Any:
        """As the original does, with this layer's columns of `position_bias`; the whole bias is passed on."""
        own = None
        # In cross-attention the bias is zero and has the heads of the layer that made it, so each layer makes its own.
        if kwargs.get("key_value_states") is None:
            if position_bias is None:
                position_bias = self._every_column(hidden_states, kwargs.get("past_key_values"))
            own = self.own_columns(position_bias)
        output, *_, weights = super().forward(hidden_states, position_bias=own, **kwargs)  # type: ignore[misc]
        return output, position_bias, weights

    def _every_column(self, hidden_states: Tensor, cache: Any) -> Tensor:
        length = hidden_states.shape[1]
        seen, keys = 0, length
        if cache is not None:
            seen = cache.get_seq_length(self.layer_idx)
            keys, _ = cache.get_mask_sizes(length, self.layer_idx)
        return self.compute_bias(length, keys, device=hidden_states.device, past_seen_tokens=seen)


def taken_by(mixin: type[PositionColumns]) -> Callable[[nn.Module, Any, Tensor], None]:
    """The `Family.resized` of a family whose attention layers select their columns as `mixin` does."""

    def resized(model: nn.Module, group: Any, kept: Tensor) -> None:
        if hasattr(group, "heads") and len(kept) < group.heads:
            mix_in(model.get_submodule(group.module), mixin)

    return resized
