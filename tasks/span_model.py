"""A pretrained model that finds spans: its tokenizer, its weights, what it takes and how much."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bplightning.errors import UserError
from bplightning.loading import load_saved

from .squad_features import LABELS, accepted_inputs

DEFAULT_LENGTH = 384
"""Tokens of a window in the published SQuAD settings."""


class SpanModel:
    """A pretrained model with a span head; each part is read when it is first asked for.

    Args:
        name: Folder or Hugging Face hub name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, padding on the right, where windows' positions are counted from."""
        tokenizer = self._pretrained(AutoTokenizer, padding_side="right")
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer of {self.name!r} ({type(tokenizer).__name__}) is not a fast one, and only those "
                "tell which characters a token covers: choose a model with a tokenizer.json."
            )
        return tokenizer

    def build(self) -> PreTrainedModel:
        """The model, fresh, in float32."""
        self.input_names  # noqa: B018  a model without a span head is refused here, with a remedy
        return self._pretrained(AutoModelForQuestionAnswering, dtype=torch.float32)

    @cached_property
    def input_names(self) -> list[str]:
        """What the model's `forward` takes of what the tokenizer makes, and of the labels."""
        kind = type(self._config)
        if kind not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
            raise UserError(
                f"The model {self.name!r} is a {self._config.model_type}, for which transformers has no "
                "question-answering head: choose another, for example a BERT."
            )
        model_class: Any = MODEL_FOR_QUESTION_ANSWERING_MAPPING[kind]
        return accepted_inputs(model_class.forward, [*self.tokenizer.model_input_names, *LABELS])

    def window_length(self, wanted: int | None) -> int:
        """Tokens of a window: as many as wanted, or the published number as far as the model has positions.

        Args:
            wanted: Tokens, or `None` where nothing is said.

        Raises:
            UserError: If the model has not so many positions.
        """
        positions = getattr(self._config, "max_position_embeddings", None)
        length = wanted or min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH)
        if positions is not None and length > positions:
            raise UserError(
                f"max_length={length} tokens, but the model {self.name!r} has {positions} positions: lower "
                "max_length (and stride, if need be)."
            )
        return length

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return self._pretrained(AutoConfig)

    def _pretrained(self, kind: Any, **arguments: Any) -> Any:
        return load_saved(partial(kind.from_pretrained, **arguments), self.name, what="the model")
