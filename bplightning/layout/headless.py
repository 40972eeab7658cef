"""An attention that lost every head: it mixes nothing, and its output is a constant.

Legend: `B` batch, `L` tokens, `S` tokens attended to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from bplightning.layout.groups import AttentionGroup
from bplightning.layout.instance_mixin import Mixin, mix_in


def behead(model: nn.Module, group: AttentionGroup) -> None:
    """Make the module that mixes the values of `group`, which has no head left, a `Headless` one."""
    module = model.get_submodule(group.module)
    if isinstance(module, Headless):
        return
    mix_in(module, Headless)
    inner = f"{group.module}."
    writer = group.output.module.removeprefix(inner)
    module.cross = group.role == "cross_attention"  # type: ignore[assignment]
    # DistilBERT's applies its output projection itself, for others the caller does.
    module.writer_name = writer if group.output.module.startswith(inner) else None  # type: ignore[assignment]
    if not hasattr(module, "config"):
        module.config = model.config


class Headless(Mixin):
    """Mixed into an attention class whose instance lost every head: it mixes nothing, its output is a constant.

    transformers' own forward pass cannot reshape to zero heads. The output projection, of no columns, is still applied
    (here or by the caller), which leaves its bias.
    """

    innermost = True
    writer_name: str | None
    cross: bool
    config: Any
    layer_idx: int
    training: bool
    parameters: Callable[[], Iterator[nn.Parameter]]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The constant, and attention weights ``(B, 0, L, S)`` where eager attention gives them.

        Args:
            hidden_states: ``(B, L, hidden size)``.
            *args: Not looked at.
            **kwargs: A cache in ``past_key_values`` is told how many tokens have passed; of what the encoder gave, only
                the length matters; the rest is not looked at.
        """
        source = hidden_states
        if self.cross:  # umT5 calls it otherwise
            source = kwargs["encoder_hidden_states" if "encoder_hidden_states" in kwargs else "key_value_states"]
        seen = source.shape[1]
        if not self.cross and kwargs.get("past_key_values") is not None:
            seen = self._advance(kwargs["past_key_values"], hidden_states)
        output = hidden_states[..., :0]
        if self.training:  # Nothing must be unused, which distributed training refuses: all takes part by no number.
            output = output + sum(unread.flatten()[:0].sum() for unread in (source, *self.parameters()))
        if self.writer_name is not None:
            output = getattr(self, self.writer_name)(output)
        *batch, length, _ = hidden_states.shape
        eager = self.config._attn_implementation == "eager"
        return output, hidden_states.new_zeros(*batch, 0, length, seen) if eager else None

    def _advance(self, cache: Any, hidden_states: Tensor) -> int:
        """Count the tokens in a key/value cache, and return how many it holds room for.

        transformers reads from the first layer's how many tokens there were, and a layer that holds no numbers counts
        none: so this holds one zero a token, as the only key, and no value. It does so in every layer, since which is
        asked depends on the kind of cache.
        """
        batch, length, _ = hidden_states.shape  # not `len`, which would fix the number in an exported graph
        key = hidden_states.new_zeros(batch, 1, length, 1)
        keys, _ = getattr(cache, "self_attention_cache", cache).update(key, key[..., :0], self.layer_idx)
        room: int = keys.shape[-2]
        return room
