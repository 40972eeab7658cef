"""Sub-layers that lost everything: attention without heads mixes nothing, and its output is a constant.

Legend: `B` batch, `L` tokens, `S` tokens attended to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from bplightning.layout.groups import AttentionGroup
from bplightning.layout.instance_mixin import Mixin, mix_in


def behead(model: nn.Module, group: AttentionGroup) -> None:
    """Turn the attention module of `group`, which has no head left, into a `Headless` one."""
    module = model.get_submodule(group.module)
    if isinstance(module, Headless):
        return
    mix_in(module, Headless)
    inner = f"{group.module}."
    writer = group.output.module.removeprefix(inner)
    module.cross = group.role == "cross_attention"  # type: ignore[assignment]
    # DistilBERT's attention applies its output projection itself; in other families the caller does.
    module.writer_name = writer if group.output.module.startswith(inner) else None  # type: ignore[assignment]
    if not hasattr(module, "config"):
        module.config = model.config


class Featureless(Mixin):
    """Mixed into the class of a `Linear` without any input or output features, which computes as before.

    By its class, torch's quantization takes it for no `Linear`: its kernels fail at such weights.
    """


class Headless(Mixin):
    """Mixed into the class of an attention module that lost every head: its output is a constant.

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
            *args: Ignored.
            **kwargs: A cache in ``past_key_values`` is told how many tokens have passed. Only the length of
                the encoder's states matters. The rest is ignored.
        """
        source = hidden_states
        if self.cross:  # umT5 has its own name for it
            source = kwargs["encoder_hidden_states" if "encoder_hidden_states" in kwargs else "key_value_states"]
        seen = source.shape[1]
        if not self.cross and kwargs.get("past_key_values") is not None:
            seen = self._advance(kwargs["past_key_values"], hidden_states)
        output = hidden_states[..., :0]
        if self.training:  # Distributed training refuses unused parameters, so an empty sum uses all of them.
            output = output + sum(unread.flatten()[:0].sum() for unread in (source, *self.parameters()))
        if self.writer_name is not None:
            output = getattr(self, self.writer_name)(output)
        *batch, length, _ = hidden_states.shape
        eager = self.config._attn_implementation == "eager"
        return output, hidden_states.new_zeros(*batch, 0, length, seen) if eager else None

    def _advance(self, cache: Any, hidden_states: Tensor) -> int:
        """Count the tokens in a key/value cache, and return how many it has room for.

        transformers reads the number of past tokens from the first layer's keys, and a layer without numbers counts
        none. So this stores one zero for each token as the only key, and no value. Every headless layer does so, since
        the kind of cache decides which layer is asked.
        """
        batch, length, _ = hidden_states.shape  # not `len`, which would fix the number in an exported graph
        key = hidden_states.new_zeros(batch, 1, length, 1)
        keys, _ = getattr(cache, "self_attention_cache", cache).update(key, key[..., :0], self.layer_idx)
        room: int = keys.shape[-2]
        return room
