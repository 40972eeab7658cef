"""Key/value caches in the form of an exported graph's inputs and outputs: plain tensors, nested by layer.

Legend: `B` batch, `H` key/value heads, `L` tokens, `D` head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer

Pair = dict[str, Tensor]
"""``key`` and ``value`` of one attention layer, each ``(B, H, L, D)``.

A layer without heads has a key with one zero per token, which holds the number of tokens, and no value; a
cross-attention without heads has nothing.
"""

SELF, CROSS = "decoder", "encoder"
"""Usual names in ONNX files of the two caches of an encoder-decoder model, after the tokens that they hold."""


class Filled(DynamicLayer):
    """A layer of a cache that is initialized, even if it holds no tokens.

    Args:
        pair: Its key and value.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        key = pair["key"]
        self.dtype, self.device = key.dtype, key.device
        self.keys, self.values = key, pair.get("value", key[..., :0])
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Number of tokens; transformers' own method branches on it, which would fix the branch in a graph."""
        assert self.keys is not None
        return self.keys.shape[-2]


def to_cache(pairs: Sequence[Pair]) -> DynamicCache:
    """The cache with these pairs, one per layer; an empty pair gives an uninitialized layer."""
    cache = DynamicCache()
    cache.layers = [Filled(pair) if pair else DynamicLayer() for pair in pairs]
    return cache


def to_cross_cache(layers: Sequence[Mapping[str, Pair]]) -> EncoderDecoderCache:
    """The cache of an encoder-decoder model; keys and values of the encoder's tokens are not computed again."""
    cache = EncoderDecoderCache(to_cache([each[SELF] for each in layers]), DynamicCache())
    cache.cross_attention_cache = to_cache([each[CROSS] for each in layers])
    cache.is_updated = {index: bool(each[CROSS]) for index, each in enumerate(layers)}
    return cache


def from_cache(cache: Cache) -> list[Pair]:
    """The contents of a cache, layer by layer."""
    pairs: list[Pair] = []
    for layer in getattr(cache, "layers", []):
        if not layer.is_initialized:
            pairs.append({})
            continue
        pair = {"key": layer.keys, "value": layer.values}
        pairs.append(pair if layer.values.shape[-1] else {"key": layer.keys})
    return pairs


def from_cross_cache(cache: EncoderDecoderCache) -> list[dict[str, Pair]]:
    """The contents of the cache of an encoder-decoder model, layer by layer."""
    own, cross = from_cache(cache.self_attention_cache), from_cache(cache.cross_attention_cache)
    cross += [{}] * (len(own) - len(cross))  # a last layer may have no head that attends to the encoder
    return [{SELF: pair, CROSS: other} for pair, other in zip(own, cross, strict=True)]


def emptied(pair: Pair) -> Pair:
    """The same pair without tokens."""
    return {name: tensor[:, :, :0] for name, tensor in pair.items()}


def widened(pair: Pair, *, batch: int) -> Pair:
    """The same pair for a batch of this many rows, all copies of the first."""
    return {name: torch.cat([tensor[:1]] * batch) for name, tensor in pair.items()}
