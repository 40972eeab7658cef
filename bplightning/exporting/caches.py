"""Key/value caches as an exported graph takes and gives them: plain tensors, nested by layer.

Legend: `B` batch, `H` key/value heads, `L` tokens, `D` head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer

Pair = dict[str, Tensor]
"""``key`` and ``value`` of one attention, each ``(B, H, L, D)``. An attention without heads has a key of one zero a
token, which says how many tokens there were, and no value; if it attends to the encoder, nothing."""

SELF, CROSS = "decoder", "encoder"
"""What the field's ONNX files call the two caches of a decoder beside an encoder: by whose tokens they hold."""


class Filled(DynamicLayer):
    """A layer of a cache that holds tokens already, also none at all.

    Args:
        pair: What it holds.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        key = pair["key"]
        self.dtype, self.device = key.dtype, key.device
        self.keys, self.values = key, pair.get("value", key[..., :0])
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """How many tokens it holds: transformers' own asks first whether there are any, which fixes that in a graph."""
        assert self.keys is not None
        return self.keys.shape[-2]


def to_cache(pairs: Sequence[Pair]) -> DynamicCache:
    """The cache that holds `pairs`, one a layer; a layer of which nothing is given has none."""
    cache = DynamicCache()
    cache.layers = [Filled(pair) if pair else DynamicLayer() for pair in pairs]
    return cache


def to_cross_cache(layers: Sequence[Mapping[str, Pair]]) -> EncoderDecoderCache:
    """The cache of a decoder beside an encoder whose keys and values are not computed again."""
    cache = EncoderDecoderCache(to_cache([each[SELF] for each in layers]), DynamicCache())
    cache.cross_attention_cache = to_cache([each[CROSS] for each in layers])
    cache.is_updated = {index: bool(each[CROSS]) for index, each in enumerate(layers)}
    return cache


def from_cache(cache: Cache) -> list[Pair]:
    """What a cache holds, layer by layer."""
    pairs: list[Pair] = []
    for layer in getattr(cache, "layers", []):
        if not layer.is_initialized:
            pairs.append({})
            continue
        pair = {"key": layer.keys, "value": layer.values}
        pairs.append(pair if layer.values.shape[-1] else {"key": layer.keys})
    return pairs


def from_cross_cache(cache: EncoderDecoderCache) -> list[dict[str, Pair]]:
    """What the cache of a decoder beside an encoder holds, layer by layer."""
    own, cross = from_cache(cache.self_attention_cache), from_cache(cache.cross_attention_cache)
    cross += [{}] * (len(own) - len(cross))  # a last layer may have no head that attends to the encoder
    return [{SELF: pair, CROSS: other} for pair, other in zip(own, cross, strict=True)]


def emptied(pair: Pair) -> Pair:
    """The same of no tokens."""
    return {name: tensor[:, :, :0] for name, tensor in pair.items()}


def widened(pair: Pair, *, batch: int) -> Pair:
    """The same for so many rows, all as the first."""
    return {name: torch.cat([tensor[:1]] * batch) for name, tensor in pair.items()}
