"""Whether a compact model computes what the masked one does."""

from __future__ import annotations

import torch
from tiny_families import (
    inputs_for,
    tensors_of,
)
from torch import nn

from bplightning.layout.families import FAMILIES

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@torch.no_grad()
def assert_exact(masked: nn.Module, smaller: nn.Module) -> None:
    """Equal outputs for every query that sees at least one key: for an encoder that is padding too."""
    tolerance = TOLERANCE[next(masked.parameters()).dtype]
    for side in ("left", "right"):
        inputs = inputs_for(masked, side)
        outputs, others = tensors_of(masked, inputs), tensors_of(smaller, inputs)
        assert outputs.keys() == others.keys()
        causal = {stack.name for stack in FAMILIES[masked.config.model_type].stacks} == {"decoder"}
        blind = causal or masked.config.model_type == "modernbert"  # padding may have no key in its window
        seen = inputs["attention_mask"].bool() if blind else slice(None)
        for name in outputs:
            expected, got = outputs[name][seen], others[name][seen]
            assert float((expected - got).abs().max() / expected.abs().max()) <= tolerance
