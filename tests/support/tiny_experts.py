"""Tiny configurations of the families with a mixture of experts."""

from __future__ import annotations

from typing import Any

from tiny_decoders import CONFIGS as DECODERS
from tiny_sizes import UNITS
from transformers import AutoModelForCausalLM

EXPERTS = 3
_LLAMA = DECODERS["mistral"][1] | {"num_experts_per_tok": 2, "num_experts": EXPERTS, "use_cache": False}
_SOME_DENSE = {"moe_intermediate_size": UNITS, "mlp_only_layers": [1]}

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixtral": (AutoModelForCausalLM, _LLAMA),
    "olmoe": (AutoModelForCausalLM, _LLAMA),
    "qwen2_moe": (AutoModelForCausalLM, {**_LLAMA, **_SOME_DENSE, "shared_expert_intermediate_size": UNITS}),
    "qwen3_moe": (AutoModelForCausalLM, {**_LLAMA, **_SOME_DENSE}),
}
"""Model type to its class and configuration."""
