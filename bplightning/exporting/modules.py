"""The modules that exporters trace: each computes one graph of a model, with nested outputs by name.

Whatever precision the model computes in, numbers come out in float32, which is what readers of such files expect. Only
a key/value cache stays in the model's own.

Legend: `B` batch, `L` tokens, `S` tokens of the encoder.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from bplightning.exporting.caches import SELF, Pair, from_cache, from_cross_cache, to_cache, to_cross_cache


class Wrapped(nn.Module):
    """Holds a model.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model


class Forward(Wrapped):
    """A whole forward pass without a cache."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Its outputs by name, without those of the encoder inside."""
        uncached = {"use_cache": False} if "use_cache" in signature(self.model.forward).parameters else {}
        if self.model.config.model_type in ("mbart", "plbart") and "decoder_input_ids" not in inputs:
            # The model does this itself, but in a way that a graph traced with several rows cannot do for one row.
            inputs = {**inputs, "decoder_input_ids": self._last_first(inputs["input_ids"])}
        outputs = self.model(**inputs, **uncached)
        return {
            name: value.float()
            for name, value in outputs.items()
            if isinstance(value, Tensor) and not name.startswith("encoder_")
        }

    def _last_first(self, ids_BL: Tensor) -> Tensor:
        """The tokens shifted right by one; the last token that is not padding comes first."""
        last_B1 = ids_BL.ne(self.model.config.pad_token_id).sum(1, keepdim=True) - 1
        return torch.cat([ids_BL.gather(1, last_B1), ids_BL[:, :-1]], dim=1)


class Step(Wrapped):
    """A step of a decoder: tokens that follow those in a cache."""

    def forward(self, past_key_values: list[Pair], **inputs: Tensor) -> dict[str, Any]:
        """Their logits ``(B, L, vocabulary)``, and the cache extended by them."""
        cache = to_cache(past_key_values)
        outputs = self.model(**inputs, past_key_values=cache, use_cache=True)
        return {"logits": outputs.logits.float(), "present": from_cache(cache)}


class Encode(Wrapped):
    """The encoder."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The hidden states ``(B, S, hidden size)``."""
        return {"last_hidden_state": self.model.get_encoder()(**inputs).last_hidden_state.float()}


class Start(Wrapped):
    """The first step of an encoder-decoder model's decoder."""

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> dict[str, Any]:
        """The logits ``(B, L, vocabulary)``, and both caches."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        outputs = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states.to(self.model.dtype)),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return {"logits": outputs.logits.float(), "present": from_cross_cache(cache)}


class LaterStep(Wrapped):
    """A later step of an encoder-decoder model's decoder: tokens that follow those in a cache."""

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, past_key_values: list[dict[str, Pair]]
    ) -> dict[str, Any]:
        """The logits ``(B, L, vocabulary)``, and the cache of the decoder's own tokens, which has grown."""
        cache = to_cross_cache(past_key_values)
        # Only the shape of the encoder's states is used: their keys and values are in the cache.
        shape = (*encoder_attention_mask.shape, self.model.config.d_model)
        states = torch.zeros(shape, dtype=self.model.dtype, device=input_ids.device)
        outputs = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return {"logits": outputs.logits.float(), "present": [{SELF: each[SELF]} for each in from_cross_cache(cache)]}
