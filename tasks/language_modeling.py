"""Language modelling, causal: predict each token from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedded.passages import generate_passages
from bplightning.tasks.shared.language_blocks import IGNORED, padded, surprise
from bplightning.tasks.shared.text_task import Columns, Split, TextTask

_BOTH_SIDES = AutoModelForMaskedLM._model_mapping
"""Configurations of models that were made to see both sides of a token, and of some encoder-decoders."""


class LanguageModeling(TextTask):
    """Predict the next token.

    Causal language modelling: predict each token from those before it, measured by perplexity.

    Texts are joined, 1,000 at a time, and cut into blocks: each with the special tokens that the tokenizer puts around
    a text and nothing more between them, so that a block may hold the end of one text and the beginning of the next;
    what is left of 1,000 is a shorter block. With no argument it uses its embedded data set and model.

    Args:
        train_file: Training texts: plain text (.txt), each line a text, or JSON lines, CSV, TSV or Parquet. May be left
            out where nothing is trained.
        columns: What the column "text" is called in the data, where it has another name.
        batch_size: Blocks of a training batch, on each device.
        eval_batch_size: Blocks of a validation batch, on each device.
        max_length: Tokens of a block. Default: 256, or what the model has positions for where that is less.
    """

    monitor: ClassVar[str] = "perplexity"
    monitor_mode: ClassVar[str] = "min"
    auto: ClassVar[Any] = AutoModelForCausalLM
    head: ClassVar[str] = "causal language-modeling head"
    default_length: ClassVar[int] = 256
    embedded_model: ClassVar[Path] = Path(__file__).parent / "embedded" / "language_start"
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "language_modeling_default.yaml"

    def build_model(self) -> PreTrainedModel:
        """The pretrained model; one that was made to see both sides, such as BERT, is told to see one."""
        config = self.pretrained.config
        both_sides = type(config) in _BOTH_SIDES and not config.is_encoder_decoder
        return self.pretrained.build(**({"is_decoder": True} if both_sides else {}))

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, which sees one side too."""
        model = super().load_model(folder)
        if getattr(model.config, "is_decoder", None) is False and type(model.config) in _BOTH_SIDES:
            raise UserError(
                f"the model {str(folder)!r} sees the tokens it is to predict: set is_decoder in its config.json, or "
                "take the task masked-language-modeling."
            )
        return model

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A distribution for each predicted token, ``(B, L - 1, V)``: all of a block but the first, no padding."""
        ignored = batch["labels"][:, 1:, None] == IGNORED
        return outputs.logits[:, :-1].masked_fill(ignored, -torch.inf)

    def evaluate_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> Any:
        """The model's outputs without a loss of its own, which would take as much memory again."""
        return model(**{name: value for name, value in self.model_inputs(batch).items() if name != "labels"})

    def encode(self, examples: Columns) -> Columns:
        """Blocks of the joined texts."""
        tokens = self.tokenizer(examples["text"], verbose=False)["input_ids"]
        return {"input_ids": cut(list(chain.from_iterable(tokens)), length=self.length)}

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads on the right whatever the tokenizer does, for positions are counted from the left."""
        return partial(padded, pad=self.tokenizer.pad_token_id)

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Passages about persons, towns, companies and so on."""
        # Both of one pool of names: of another, the model could only learn that they are not to be expected.
        size, seed = {"train": (4000, 0), "validation": (400, 1)}[split]
        return [{"text": passage.text} for passage in generate_passages("train", size=size, seed=seed)]

    # -- measuring -----------------------------------------------------------------------------------------------------

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """For each block the total surprise of the model, and over how many tokens: all but the first."""
        return surprise(outputs.logits[:, :-1], batch["labels"][:, 1:])

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """``perplexity``: the exponential of the mean over all predicted tokens of all blocks; infinite without one."""
        total, tokens = rows.sum(dim=0)
        return {"perplexity": (total / tokens).exp() if tokens else torch.inf}

    # -- prediction ----------------------------------------------------------------------------------------------------

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """A text, and not an empty one."""
        super().check_input(name, value, place=place)
        if not value.strip():
            raise UserError(f"{place} has an empty {name!r}: give a text to judge, or leave it out.")

    def encode_inputs(self, examples: Columns) -> Columns:
        """Each text by itself, a long one in blocks that share a token, so that all but the first are predicted."""
        tokens = self.tokenizer(examples["text"], verbose=False)["input_ids"]
        blocks = [cut(ids, length=self.length, overlap=1) or [ids] for ids in tokens]
        records = [[record] * len(parts) for record, parts in enumerate(blocks)]
        return {"input_ids": list(chain.from_iterable(blocks)), "record": list(chain.from_iterable(records))}

    def predict_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The blocks' numbers, and which text each is of."""
        return {"record": batch["record"], "values": self.example_values(model(**self.model_inputs(batch)), batch)}

    def predictions(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each text ``perplexity``, the mean ``negative_log_likelihood`` of a token, and ``tokens`` predicted."""
        sums = torch.zeros(len(self._ids), 2, dtype=torch.float64)
        for batch in batches:
            sums.index_add_(0, batch["record"].cpu(), batch["values"].double().cpu())
        return [given | _judged(*row) for given, row in zip(self._ids, sums.tolist(), strict=True)]


def _judged(total: float, tokens: float) -> dict[str, Any]:
    """Null for a text of one token, before which there is nothing to predict it from."""
    mean = total / tokens if tokens else None
    perplexity = None if mean is None or mean > 700 else math.exp(mean)  # more is no floating-point number
    return {"perplexity": perplexity, "negative_log_likelihood": mean, "tokens": int(tokens)}


def cut(ids: list[int], *, length: int, overlap: int = 0) -> list[list[int]]:
    """Cut tokens into blocks; the last is what is left, if that is two tokens or more.

    Args:
        ids: The tokens.
        length: Tokens of a block.
        overlap: Tokens that a block shares with the one before it, less than `length`.

    >>> cut([1, 2, 3, 4, 5], length=3), cut([1, 2, 3, 4, 5], length=3, overlap=1)
    ([[1, 2, 3], [4, 5]], [[1, 2, 3], [3, 4, 5]])
    """
    return [ids[start : start + length] for start in range(0, len(ids) - 1, length - overlap)]
