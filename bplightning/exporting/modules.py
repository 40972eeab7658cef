"""The modules that exporters trace: what one graph of a model computes, nested outputs by name.

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
    """Everything the model decides, and no cache."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Its floating-point outputs by name; what it had from its encoder in between is left out."""
        uncached = {"use_cache": False} if "use_cache" in signature(self.model.forward).parameters else {}
        if self.model.config.model_type in ("mbart", "plbart") and "decoder_input_ids" not in inputs:
            # What they do themselves, in a way of which a graph made with several rows does not work for one row.
            inputs = {**inputs, "decoder_input_ids": self._last_first(inputs["input_ids"])}
        outputs = self.model(**inputs, **uncached)
        return {
            name: value
            for name, value in outputs.items()
            if isinstance(value, Tensor) and not name.startswith("encoder_")
        }

    def _last_first(self, ids_BL: Tensor) -> Tensor:
        """The tokens moved on by one place; the last that is not padding comes to the front."""
        last_B1 = ids_BL.ne(self.model.config.pad_token_id).sum(1, keepdim=True) - 1
        return torch.cat([ids_BL.gather(1, last_B1), ids_BL[:, :-1]], dim=1)


class Step(Wrapped):
    """Tokens that follow those of a cache."""

    def forward(self, past_key_values: list[Pair], **inputs: Tensor) -> dict[str, Any]:
        """Their logits ``(B, L, vocabulary)``, and the cache that holds them too."""
        cache = to_cache(past_key_values)
        outputs = self.model(**inputs, past_key_values=cache, use_cache=True)
        return {"logits": outputs.logits, "present": from_cache(cache)}


class Encode(Wrapped):
    """The encoder."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The hidden states ``(B, S, hidden size)``."""
        return {"last_hidden_state": self.model.get_encoder()(**inputs).last_hidden_state}


class Start(Wrapped):
    """The first tokens of a decoder beside an encoder."""

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> dict[str, Any]:
        """Their logits ``(B, L, vocabulary)``, and the cache of both kinds."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        outputs = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return {"logits": outputs.logits, "present": from_cross_cache(cache)}


class StepBeside(Wrapped):
    """Tokens of a decoder beside an encoder that follow those of a cache."""

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, past_key_values: list[dict[str, Pair]]
    ) -> dict[str, Any]:
        """Their logits ``(B, L, vocabulary)``, and of the cache what has grown."""
        cache = to_cross_cache(past_key_values)
        # Of what the encoder gave, only the shape is looked at: the keys and values made of it are in the cache.
        shape = (*encoder_attention_mask.shape, self.model.config.d_model)
        states = torch.zeros(shape, dtype=self.model.dtype, device=input_ids.device)
        outputs = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return {"logits": outputs.logits, "present": [{SELF: each[SELF]} for each in from_cross_cache(cache)]}
