"""Comparing two models by their logits on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.errors import UserError

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference that rounding may cause between two equal models, relative to the largest logit."""


@dataclass(frozen=True)
class LogitDifference:
    """How much two models differ.

    Attributes:
        absolute: Largest absolute difference of two logits.
        relative: The absolute difference divided by the largest absolute logit.
    """

    absolute: float
    relative: float


@torch.no_grad()
def logit_difference(first: nn.Module, second: nn.Module, inputs: Mapping[str, Tensor]) -> LogitDifference:
    """Run both models in evaluation mode on `inputs` and compare every floating-point output except losses.

    Outputs at padding are not compared: nobody reads them, and in a decoder such a position may see no key at all.

    Args:
        first: The reference.
        second: The model to compare, on the same device.
        inputs: Inputs of both `forward` methods.
    """
    largest, absolute = 0.0, 0.0
    expected, got = _outputs(first, inputs), _outputs(second, inputs)
    for name in expected:
        largest = max(largest, float(expected[name].abs().max()))
        difference = float((expected[name] - got[name]).abs().max())
        # NaN counts as a difference; `max` would drop it.
        absolute = max(absolute, difference) if difference == difference else float("inf")
    relative = absolute / largest if largest else absolute
    return LogitDifference(absolute, relative)


def require_equal(first: nn.Module, second: nn.Module, inputs: Mapping[str, Tensor], *, what: str) -> LogitDifference:
    """Refuse two models whose logits differ by more than rounding.

    Args:
        first: The reference.
        second: The model to compare, on the same device.
        inputs: Inputs of both `forward` methods.
        what: What `second` is, for the message, for example ``"the compact model"``.

    Returns:
        The difference found.

    Raises:
        UserError: They differ; the message says by how much.
    """
    difference = logit_difference(first, second, inputs)
    dtype = next(first.parameters()).dtype
    tolerance = TOLERANCES[dtype]
    if not difference.relative <= tolerance:
        raise UserError(
            f"{what}'s logits differ by {difference.absolute:.3g} ({difference.relative:.3g} of the largest logit), "
            f"more than the {tolerance:g} that {str(dtype).removeprefix('torch.')} rounding explains: it is not used. "
            "Please report this with the model's architecture."
        )
    return difference


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    training = model.training
    model.eval()
    try:
        outputs = model(**inputs)
    finally:
        model.train(training)
    config: Any = model.config
    attended = inputs.get("decoder_attention_mask" if config.is_encoder_decoder else "attention_mask")
    compared = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not name.endswith("loss"):
            if attended is not None and value.shape[:2] == attended.shape:
                value = value[attended.bool()]
            compared[name] = value.double()
    return compared
