"""The graphs that a model is exported as: one, or for a model that generates, those that a loop over tokens needs.

Graphs, inputs and outputs have the names that are usual in ONNX files (``encoder_model``, ``decoder_model``,
``past_key_values.0.key``, ``present.0.key``).

Legend: `B` batch, `L` tokens, `P` tokens in a cache, `S` tokens of the encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from bplightning.compaction.example_inputs import takes_images
from bplightning.exporting.caches import CROSS, SELF, emptied, from_cache, widened
from bplightning.exporting.modules import Encode, Forward, LaterStep, Start, Step

Call = Callable[[dict[str, Any]], dict[str, Any]]
"""Computes a graph: from its inputs to its outputs, both nested as those of its module."""

BATCH, LENGTH, PAST = "batch_size", "sequence_length", "past_sequence_length"
ENCODER_LENGTH, DECODER_LENGTH = "encoder_sequence_length", "decoder_sequence_length"
"""Names of the axes that may have any size, as readers expect them: transformers.js makes a cache by them."""


STEPS = ("encoder_model", "decoder_model", "decoder_with_past_model")
"""Names of the graphs of an encoder-decoder model: the encoder, the decoder's first step, and its later steps."""


@dataclass(frozen=True)
class Graph:
    """One graph.

    Attributes:
        name: Name of its file, without extension.
        module: The `nn.Module` that computes it, from keyword arguments to a dictionary, both nested.
        inputs: Example inputs that it is traced with.
        axes: For each input, in the same nesting, index to name of the axes that may have any size.
    """

    name: str
    module: Any
    inputs: dict[str, Any]
    axes: dict[str, Any]


class Parts(ABC):
    """The graphs of a model, and how they are used together.

    Args:
        model: The model, in evaluation mode.
        inputs: Example inputs of `forward`.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
        self.model = model
        with torch.no_grad():
            self.graphs = self.build(dict(inputs))

    @abstractmethod
    def build(self, inputs: dict[str, Tensor]) -> list[Graph]:
        """The graphs."""

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with which the model itself computes the same as the graphs.

        Args:
            inputs: Inputs of `forward`.
        """
        return dict(inputs)

    @abstractmethod
    def compute(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's outputs, computed by the graphs alone, each used at least once.

        Args:
            calls: Name of each graph to the function that computes it.
            inputs: Inputs of `forward`.
        """

    def generate(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor], *, tokens: int) -> Tensor:
        """Generate tokens greedily with a cache, ``(B, tokens)``; no token ends the text.

        Args:
            calls: Name of each graph to the function that computes it.
            inputs: ``input_ids`` and ``attention_mask``.
            tokens: New tokens in each row.
        """
        raise NotImplementedError(f"{type(self.model).__name__} was exported without a cache")


def parts_of(model: PreTrainedModel, inputs: Mapping[str, Tensor], *, with_past: bool = True) -> Parts:
    """The parts that a model is exported as.

    Args:
        model: The model, in evaluation mode.
        inputs: Example inputs of `forward`, with two rows or more.
        with_past: Whether a model that generates gets graphs with a key/value cache.
    """
    if not with_past or takes_images(model) or not model.can_generate():
        return Whole(model, inputs)
    return EncoderDecoder(model, inputs) if model.config.is_encoder_decoder else Decoder(model, inputs)


class Whole(Parts):
    """One graph for one forward pass."""

    def build(self, inputs: dict[str, Tensor]) -> list[Graph]:
        return [Graph("model", Forward(self.model), inputs, {name: _axes(name, inputs[name]) for name in inputs})]

    def compute(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return calls["model"](dict(inputs))


class Decoder(Parts):
    """One graph for any step of a decoder: the first, with an empty cache, and later ones."""

    def build(self, inputs: dict[str, Tensor]) -> list[Graph]:
        inputs = self.placed(inputs)
        cache = from_cache(self.model(**inputs, past_key_values=DynamicCache(), use_cache=True).past_key_values)
        self.empty = [emptied(pair) for pair in cache]
        past = inputs["input_ids"].shape[1] - 2
        example = {
            **{name: tensor[:, past:] for name, tensor in inputs.items() if name != "attention_mask"},
            "attention_mask": inputs["attention_mask"],
            "past_key_values": [{name: tensor[:, :, :past] for name, tensor in pair.items()} for pair in cache],
        }
        axes: dict[str, Any] = {name: _axes(name, tensor) for name, tensor in inputs.items()}
        axes["attention_mask"] = {0: BATCH, 1: f"{PAST} + {LENGTH}"}
        axes["past_key_values"] = [{name: {0: BATCH, 2: PAST} for name in pair} for pair in cache]
        return [Graph("model", Step(self.model), example, axes)]

    def compute(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = self.placed(inputs)
        length = inputs["input_ids"].shape[1]
        past: Any = [widened(pair, batch=len(inputs["input_ids"])) for pair in self.empty]
        logits = []
        for start, end in ((0, length - 1), (length - 1, length)):
            step: dict[str, Any] = {name: tensor[:, start:end] for name, tensor in inputs.items()}
            step["attention_mask"] = inputs["attention_mask"][:, :end]
            outputs = calls["model"]({**step, "past_key_values": past})
            logits.append(outputs["logits"])
            past = outputs["present"]
        return {"logits": torch.cat(logits, dim=1)}

    def generate(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor], *, tokens: int) -> Tensor:
        step: dict[str, Any] = self.placed(inputs)
        past: Any = [widened(pair, batch=len(inputs["input_ids"])) for pair in self.empty]
        written: list[Tensor] = []
        while True:
            outputs = calls["model"]({**step, "past_key_values": past})
            written.append(outputs["logits"][:, -1:].argmax(-1))
            if len(written) == tokens:
                return torch.cat(written, dim=1)
            past, mask = outputs["present"], step["attention_mask"]
            step |= {"input_ids": written[-1], "attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)}
            if "position_ids" in step:
                step["position_ids"] = step["position_ids"][:, -1:] + 1

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, with the positions of the tokens where the model does not compute them."""
        placed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        # An encoder that serves as a decoder counts in its own way (RoBERTa from the padding's id).
        if "position_ids" in signature(self.model.forward).parameters and not serves_as_decoder(self.model):
            placed["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return placed


class EncoderDecoder(Parts):
    """The three graphs of `STEPS`."""

    def build(self, inputs: dict[str, Tensor]) -> list[Graph]:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        encode, start, step = Encode(self.model), Start(self.model), LaterStep(self.model)
        tokens, states = inputs["decoder_input_ids"], encode(**read)["last_hidden_state"]
        first = {
            "input_ids": tokens,
            "encoder_hidden_states": states,
            "encoder_attention_mask": inputs["attention_mask"],
        }
        past = start(**first)["present"]
        mask_axes = {0: BATCH, 1: ENCODER_LENGTH}
        first_axes = {"input_ids": {0: BATCH, 1: LENGTH}, "encoder_attention_mask": mask_axes}
        past_axes = [
            {
                SELF: {name: {0: BATCH, 2: PAST} for name in layer[SELF]},
                CROSS: {name: {0: BATCH, 2: ENCODER_LENGTH} for name in layer[CROSS]},
            }
            for layer in past
        ]
        later = {name: first[name] for name in first_axes}
        encoder, begin, go_on = STEPS
        return [
            Graph(encoder, encode, read, dict.fromkeys(read, mask_axes)),
            Graph(begin, start, first, {**first_axes, "encoder_hidden_states": mask_axes}),
            Graph(
                go_on,
                step,
                {**later, "past_key_values": past},
                {**first_axes, "past_key_values": past_axes},
            ),
        ]

    def compute(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        states = calls["encoder_model"](read)["last_hidden_state"]
        mask, tokens = {"encoder_attention_mask": inputs["attention_mask"]}, inputs["decoder_input_ids"]
        first = calls["decoder_model"]({"input_ids": tokens[:, :-1], "encoder_hidden_states": states, **mask})
        step = {"input_ids": tokens[:, -1:], "past_key_values": first["present"], **mask}
        logits = [first["logits"], calls["decoder_with_past_model"](step)["logits"]]
        return {"logits": torch.cat(logits, dim=1)}

    def generate(self, calls: Mapping[str, Call], inputs: Mapping[str, Tensor], *, tokens: int) -> Tensor:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        states = calls["encoder_model"](read)["last_hidden_state"]
        mask = {"encoder_attention_mask": inputs["attention_mask"]}
        begin = torch.full_like(inputs["input_ids"][:, :1], self.model.generation_config.decoder_start_token_id)
        outputs = calls["decoder_model"]({"input_ids": begin, "encoder_hidden_states": states, **mask})
        past = _by_layer(outputs["present"])
        written = [outputs["logits"][:, -1:].argmax(-1)]
        while len(written) < tokens:
            outputs = calls["decoder_with_past_model"]({"input_ids": written[-1], "past_key_values": past, **mask})
            written.append(outputs["logits"][:, -1:].argmax(-1))
            grown = _by_layer(outputs["present"])
            past = {name: {**layer, SELF: grown[name][SELF]} for name, layer in past.items()}
        return torch.cat(written, dim=1)


def _by_layer(nested: Any) -> dict[str, dict[str, Any]]:
    """The parts by layer, where they are given as a list or as a dictionary."""
    return {str(key): each for key, each in (nested.items() if isinstance(nested, dict) else enumerate(nested))}


def _axes(name: str, tensor: Tensor) -> dict[int, str]:
    """The axes of an input that may have any size: rows, and tokens if it has them."""
    if tensor.ndim != 2:
        return {0: BATCH}
    return {0: BATCH, 1: DECODER_LENGTH if name == "decoder_input_ids" else LENGTH}


def serves_as_decoder(model: PreTrainedModel) -> bool:
    """Whether a model is an encoder architecture used as a decoder, or the decoder of an encoder-decoder model."""
    return bool(getattr(model.config, "is_decoder", False))
