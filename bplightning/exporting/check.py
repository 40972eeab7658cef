"""Whether what was exported computes what torch does: made inputs and real text, and the largest difference on them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from bplightning.compaction.equivalence import made_images, takes_images
from bplightning.compaction.example_inputs import positions_of
from bplightning.exporting.graphs import Call, Parts, serves_as_decoder

LIMITS = {torch.float32: 1e-4, torch.float16: 5e-2}
"""Largest difference that rounding may make, relative to the largest output of torch in float32. Wider than between two
models in torch: another library's kernels add up in another order. A wrong graph is off by far more."""

TEXTS = (
    "The ferry to the island was late again.",
    "Who repaired the clock of the old station, and when was it that trains stopped there for the last time?",
    "Good.",
    "A short film about a lighthouse keeper, warm and funny, although the last half hour drags on.",
)


def made_inputs(model: PreTrainedModel, *, rows: int, length: int) -> dict[str, Tensor]:
    """Seeded random inputs as `forward` takes them: images, or tokens, with padding from the second row on.

    Args:
        model: The model.
        rows: Rows of the batch.
        length: Tokens in a row; fewer where the model has no room for so many.
    """
    if takes_images(model):
        return made_images(model, rows)
    config: Any = model.config
    length = min(length, positions_of(model) or length)
    generator = torch.Generator().manual_seed(0)
    special = {config.pad_token_id, *_listed(config.eos_token_id)}
    plain = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    input_ids = plain[torch.randint(len(plain), (rows, length), generator=generator)]
    mask = torch.ones_like(input_ids)
    for row in range(1, rows):  # on the right, on the left, on the right, ...; RoBERTa as a decoder knows no left
        left = row % 2 == 0 and not serves_as_decoder(model)
        mask[row, : length // 3 if left else 0] = 0
        mask[row, length if left else length - length // 3 :] = 0
    last = (mask * torch.arange(length)).argmax(1)
    if _listed(config.eos_token_id):  # BART and T5 classify by it, and want as many in each row
        input_ids[torch.arange(rows), last] = _listed(config.eos_token_id)[0]
    input_ids[mask == 0] = config.pad_token_id or 0
    types = torch.randint(max(1, getattr(config, "type_vocab_size", 0)), input_ids.shape, generator=generator)
    return _as_taken(model, {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types})


def text_inputs(model: PreTrainedModel, folder: Path) -> dict[str, Tensor] | None:
    """A few sentences as `forward` takes them, in pairs if the model tells two apart.

    `None` where the folder has no tokenizer that could encode them.

    Args:
        model: The model.
        folder: Its folder.
    """
    if takes_images(model) or not any(folder.glob("tokenizer*")):
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError):
        return None
    if len(tokenizer) > model.config.vocab_size or (tokenizer.pad_token is None and tokenizer.eos_token is None):
        return None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    room = min(64, positions_of(model) or 64)
    side = "right" if serves_as_decoder(model) else tokenizer.padding_side
    pairs = list(reversed(TEXTS)) if _types(model) else None
    encoded = tokenizer(
        list(TEXTS), pairs, padding=True, truncation=True, max_length=room, padding_side=side, return_tensors="pt"
    )
    return _as_taken(model, dict(encoded))


@torch.no_grad()
def largest_difference(
    model: PreTrainedModel, parts: Parts, calls: Mapping[str, Call], inputs: Mapping[str, Tensor]
) -> float:
    """The largest difference of two outputs, divided by the largest output of torch; what is padding is left out.

    Args:
        model: The reference, in float32.
        parts: What was exported.
        calls: By a graph's name, what computes it.
        inputs: As the model's `forward` takes them.
    """
    expected = model(**parts.placed(inputs))
    mask = inputs.get("attention_mask")
    found = largest = 0.0
    for name, got in parts.compute(calls, inputs).items():
        right, got = expected[name], got.float()
        if mask is not None and right.shape[:2] == mask.shape and not model.config.is_encoder_decoder:
            right, got = right[mask.bool()], got[mask.bool()]  # of padding on the left a decoder sees no key at all
        largest = max(largest, float(right.abs().max()))
        difference = float((right - got).abs().max())
        found = max(found, difference) if difference == difference else float("inf")
    return found / largest if largest else found


def _as_taken(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those inputs that the model reads, and those that it reads beside them."""
    parameters, ids = signature(model.forward).parameters, inputs["input_ids"]
    taken = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if _types(model):
        taken["token_type_ids"] = inputs.get("token_type_ids", torch.zeros_like(ids))
    if "decoder_input_ids" in parameters and (model.can_generate() or model.base_model is model):
        taken["decoder_input_ids"] = ids[:, : max(2, ids.shape[1] // 2)]  # other heads make it of the text
    return taken


def _types(model: PreTrainedModel) -> bool:
    """Whether a model tells a first text from a second; RoBERTa and its kin have the argument too, and one type."""
    named = "token_type_ids" in signature(model.forward).parameters
    return named and getattr(model.config, "type_vocab_size", 0) > 1


def _listed(token: int | list[int] | None) -> list[int]:
    return [] if token is None else [token] if isinstance(token, int) else token
