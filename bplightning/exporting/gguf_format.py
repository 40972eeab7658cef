"""Writing a decoder of Llama's kind as GGUF, the file of llama.cpp, with widths that differ from layer to layer.

llama.cpp's architecture ``deci`` has heads, key/value heads and units by layer. Its graph is Llama's: RMSNorm, rotary
positions in adjacent pairs, SwiGLU. What it cannot hold is refused before anything is written.

Legend: `H` heads, `D` head size, `I` in features.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from bplightning.errors import UserError
from bplightning.exporting.gguf_tokenizer import Vocabulary, add_vocabulary
from bplightning.layout.groups import AttentionGroup, FeedForwardGroup
from bplightning.layout.prunable_layout import PrunableLayout, base_prefix

ARCHITECTURE = "deci"

FAMILIES = ("llama", "mistral", "qwen2")
"""Model types that compute what that architecture does."""

GGUF_FILE = "model.gguf"

TYPES = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}
"""Types of the weights, as options spell them and as GGUF does."""

BLOCK = 32
"""Columns that share a scale in q8_0; other widths are written in float16, as llama.cpp does."""


def require_gguf(model: PreTrainedModel) -> None:
    """Refuse a model that the architecture cannot hold, or to go on without the library.

    Raises:
        UserError: The model computes something else, or the package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise UserError("the format gguf needs the package gguf: pip install gguf.")
    config: Any = model.config
    layout = PrunableLayout.of(model) if config.model_type in FAMILIES else None
    what = None
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if layout is None:
        what = f"is of type {config.model_type!r}: {', '.join(FAMILIES)} fit"
    elif not type(model).__name__.endswith("ForCausalLM"):
        what = f"is a {type(model).__name__}, whose head it lacks: a language model fits (ForCausalLM)"
    elif config.hidden_act != "silu":
        what = f"has the activation {config.hidden_act!r}: 'silu' fits"
    elif (getattr(config, "sliding_window", None) or config.max_position_embeddings) < config.max_position_embeddings:
        what = f"attends to a window of {config.sliding_window} tokens: sliding_window null fits, where that is enough"
    elif rope.get("rope_type", "default") not in ("default", "llama3"):
        what = f"has rotary positions of type {rope['rope_type']!r}: 'default' and 'llama3' fit"
    elif biased := _biases(layout):
        what = f"has biases, such as that of {biased[0]}: without biases it fits. Convert a portable checkpoint "
        what += "(compact --portable) with llama.cpp's own script"
    if what is not None:
        raise UserError(
            f"llama.cpp's architecture {ARCHITECTURE!r}, the one with widths by layer, cannot hold this model, which "
            f"{what}."
        )


def _biases(layout: PrunableLayout) -> list[str]:
    """Projections with a bias that is not zero."""
    return [
        member.name
        for group in layout.groups
        for member in group.members
        if (bias := member.bias_of(layout.model)) is not None and bool(bias.any())
    ]


@torch.no_grad()
def write_gguf(model: PreTrainedModel, vocabulary: Vocabulary | None, file: Path, *, type: str = "float32") -> None:
    """Write a model that `require_gguf` accepts.

    Args:
        model: The model, dense or compact, in float32.
        vocabulary: Its tokens; `None` writes a file that knows no text.
        file: The file, in an existing folder.
        type: Type of the matrices, a key of `TYPES`; vectors are in float32.
    """
    import gguf

    writer = gguf.GGUFWriter(file, ARCHITECTURE)
    _add_settings(writer, model, gguf, type)
    add_vocabulary(writer, vocabulary)
    for name, value in _tensors(model, type):
        kind = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else gguf.GGMLQuantizationType[TYPES[type]]
        if kind == gguf.GGMLQuantizationType.Q8_0 and value.shape[-1] % BLOCK:
            kind = gguf.GGMLQuantizationType.F16
        numbers = np.ascontiguousarray(value.float().cpu().numpy())
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: Any, model: PreTrainedModel, gguf: Any, type: str) -> None:
    config: Any = model.config
    attention, feed_forward = _layers(model)
    size = attention[0].head_size
    writer.add_name(str(config._name_or_path or config.model_type).rstrip("/").rpartition("/")[2] or config.model_type)
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[kinds[type]])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(attention))
    heads = [(group.heads, group.kv_heads) for group in attention]
    if heads[0] == (0, 0):  # llama.cpp takes a model whose first layer has no head for one without attention
        heads[0] = 1, 1
    writer.add_head_count([each for each, _ in heads])
    writer.add_head_count_kv([each for _, each in heads])
    writer.add_feed_forward_length([units_of(group, type) for group in feed_forward])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _layers(model: PreTrainedModel) -> tuple[tuple[AttentionGroup, ...], tuple[FeedForwardGroup, ...]]:
    layout = PrunableLayout.of(model)
    return layout.attention, layout.feed_forward


def units_of(group: FeedForwardGroup, type: str) -> int:
    """How many units a layer gets: those it has, and units of zeros.

    llama.cpp skips the whole layer where there are none, heads or not; and q8_0 needs whole blocks of columns.

    Args:
        group: The layer.
        type: A key of `TYPES`.
    """
    step = BLOCK if type == "q8_0" else 1
    return max(step, -(-group.width // step) * step)


def _tensors(model: PreTrainedModel, type: str) -> list[tuple[str, Tensor]]:
    """Every tensor by its name in GGUF."""
    base: Any = model.get_submodule(base_prefix(model).rstrip("."))
    head: Any = model.get_output_embeddings()
    found = [("token_embd.weight", base.embed_tokens.weight), ("output_norm.weight", base.norm.weight)]
    if head.weight is not base.embed_tokens.weight:
        found.append(("output.weight", head.weight))
    factors = _frequency_factors(model, base)
    if factors is not None:
        found.append(("rope_freqs.weight", factors))
    for index, (attention, feed_forward) in enumerate(zip(*_layers(model), strict=True)):
        block, layer = f"blk.{index}", base.layers[index]
        query, key, value, output = (member.weight(model) for member in attention.members)
        heads, kv_heads = attention.heads, attention.kv_heads
        if index == 0 and heads == 0:
            query, key, value = (each.new_zeros(attention.head_size, each.shape[1]) for each in (query, key, value))
            heads, kv_heads, output = 1, 1, output.new_zeros(output.shape[0], attention.head_size)
        if heads:
            found.append((f"{block}.attn_norm.weight", layer.input_layernorm.weight))
            found.append((f"{block}.attn_q.weight", adjacent_pairs(query, heads)))
            found.append((f"{block}.attn_k.weight", adjacent_pairs(key, kv_heads)))
            found.append((f"{block}.attn_v.weight", value))
            found.append((f"{block}.attn_output.weight", output))
        more = units_of(feed_forward, type) - feed_forward.width
        gate, up = (pad(each.weight(model), (0, 0, 0, more)) for each in feed_forward.up)
        down = pad(feed_forward.down.weight(model), (0, more))
        found.append((f"{block}.ffn_norm.weight", layer.post_attention_layernorm.weight))
        found.append((f"{block}.ffn_gate.weight", gate))
        found.append((f"{block}.ffn_up.weight", up))
        found.append((f"{block}.ffn_down.weight", down))
    return found


def adjacent_pairs(weight_OI: Tensor, heads: int) -> Tensor:
    """The rows of a query or key projection in llama.cpp's order: what is rotated together lies side by side.

    transformers rotates dimension `d` of a head with ``d + D/2``.

    Args:
        weight_OI: ``(H * D, I)``.
        heads: How many heads it has.
    """
    rows, columns = weight_OI.shape
    return weight_OI.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _frequency_factors(model: PreTrainedModel, base: nn.Module) -> Tensor | None:
    """What llama.cpp divides the rotary frequencies by, where they are scaled for long texts; `None` where not."""
    config: Any = model.config
    rotary: Any = base.rotary_emb
    if config.rope_parameters.get("rope_type", "default") == "default":
        return None
    scaled = rotary.inv_freq.float()
    exponents = torch.arange(len(scaled), dtype=torch.float32, device=scaled.device) / len(scaled)
    plain: Tensor = float(config.rope_parameters["rope_theta"]) ** -exponents
    return plain / scaled
