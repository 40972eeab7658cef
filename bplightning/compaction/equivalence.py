"""Whether two models compute the same: their logits compared on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.errors import UserError

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference two equal models may show by rounding, relative to the largest logit."""


@dataclass(frozen=True)
class LogitDifference:
    """How far two models are apart.

    Attributes:
        absolute: Largest absolute difference of two logits.
        relative: The same, divided by the largest absolute logit.
    """

    absolute: float
    relative: float


def made_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Seeded random inputs: images, or rows of tokens without padding, padded on the right, padded on the left."""
    config: Any = model.config
    if takes_images(model):
        return made_images(model, 4)
    length = max(4, min(32, (getattr(config, "max_position_embeddings", None) or 64) // 2))
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(config.vocab_size, (4, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length - length // 4 :] = 0
    attention_mask[2, : length // 4] = 0
    attention_mask[3, length // 4 :] = 0
    input_ids[attention_mask == 0] = config.pad_token_id or 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if getattr(config, "is_encoder_decoder", False) and type(model).__name__.endswith("ForSequenceClassification"):
        # They classify by the last end of sequence, of which each row must have as many, and read the text twice.
        input_ids[input_ids == config.eos_token_id] = (config.eos_token_id + 1) % config.vocab_size
        last = (attention_mask * torch.arange(length)).argmax(1)
        input_ids[torch.arange(4), last] = config.eos_token_id
    elif getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.randint(config.vocab_size, (4, length // 2), generator=generator)
    return {name: tensor.to(next(model.parameters()).device) for name, tensor in inputs.items()}


def takes_images(model: nn.Module) -> bool:
    """Whether it reads pixels, not tokens."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def made_images(model: nn.Module, count: int) -> dict[str, Tensor]:
    """So many seeded random images of the size the model is made for."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, config.num_channels, *image_sides(config.image_size), generator=generator)
    return {"pixel_values": images.to(next(model.parameters()).device)}


def image_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, in pixels, of what a configuration gives as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


@torch.no_grad()
def logit_difference(first: nn.Module, second: nn.Module, inputs: Mapping[str, Tensor]) -> LogitDifference:
    """Run both models in evaluation mode on `inputs` and compare every floating-point output but losses.

    What a model gives for padding is left out: nobody reads it, and in a decoder it may come from no key at all.

    Args:
        first: The reference.
        second: The model compared with it, on the same device.
        inputs: What both `forward` methods take.
    """
    largest, absolute = 0.0, 0.0
    expected, got = _outputs(first, inputs), _outputs(second, inputs)
    for name in expected:
        largest = max(largest, float(expected[name].abs().max()))
        difference = float((expected[name] - got[name]).abs().max())
        # A NaN is a difference, and `max` would drop it.
        absolute = max(absolute, difference) if difference == difference else float("inf")
    relative = absolute / largest if largest else absolute
    return LogitDifference(absolute, relative)


def require_equal(first: nn.Module, second: nn.Module, inputs: Mapping[str, Tensor], *, what: str) -> LogitDifference:
    """Refuse two models whose logits differ by more than rounding.

    Args:
        first: The reference.
        second: The model compared with it, on the same device.
        inputs: What both `forward` methods take.
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
            f"more than the {tolerance:g} that {str(dtype).removeprefix('torch.')} rounding explains: it is refused."
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
