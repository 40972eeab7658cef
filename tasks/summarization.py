"""Summarization by encoder-decoder models: a text in, a shorter one out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, GenerationConfig, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedded.summarization import generate
from bplightning.tasks.shared.generation import Generation, generation_config, recorded
from bplightning.tasks.shared.rouge import NAMES, rouge
from bplightning.tasks.shared.table import require_texts
from bplightning.tasks.shared.text_task import Columns, Split, TextTask
from bplightning.tasks.shared.tokenized_task import TextSource

HUB_COLUMNS = {
    "cnn_dailymail": {"text": "article", "summary": "highlights"},
    "xsum": {"text": "document", "summary": "summary"},
}
"""Last part of a data set's name on the hub to what it calls text and summary."""

HUB_CONFIGS = {"cnn_dailymail": "3.0.0"}
"""The same to the configuration that is taken where none is named."""

AS_THE_MODEL_SAYS = Generation()

PREFIXES = {"t5": "summarize: "}
"""Model type to what its pretraining put before a text to be summarized."""


class Summarization(TextTask):
    """Summarize a text; measured by ROUGE.

    Summarization of a text by an encoder-decoder model, measured by ROUGE on the summaries that it generates.

    Training is teacher-forced; a validation generates. With `--task.dataset abisee/cnn_dailymail` or
    `EdinburghNLP/xsum` the columns are known. A summary may be a list of several: the first is learned, and the score
    is that of the reference which a generated summary is most like. With no argument it uses its embedded data set and
    model.

    Args:
        dataset_config: Configuration (subset) of `dataset`, where it has several; of cnn_dailymail 3.0.0.
        columns: What the columns "text" and "summary" are called in the data, where they have other names.
        prefix: Put before each text. Default: "summarize: " for T5, which was trained so, and nothing for others.
        max_length: Tokens of a text, prefix included, what is longer is cut. Default: 512, or what the model has
            positions for where that is less.
        max_summary_length: Tokens of a summary to be learned, what is longer is cut; of a generated one too where
            neither `generation` nor the model sets a length.
        generation: How summaries are generated, where that differs from the model's own settings. Saved with the
            model as generation_config.json.
        eval_examples: Validation examples that validations during training generate summaries for, a seeded choice,
            since that is slow; the evaluation at the end takes all. null for all.

    Raises:
        UserError: The data is given twice or in part, or without a model, or a number is out of range.
    """

    monitor: ClassVar[str] = "rouge2"  # the one that varies most between models; T5's paper goes by it too
    auto: ClassVar[Any] = AutoModelForSeq2SeqLM
    head: ClassVar[str] = "sequence-to-sequence language-modeling head"
    default_length: ClassVar[int] = 512
    embedded_model: ClassVar[Path] = Path(__file__).parent / "embedded" / "summarization_start"
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "summarization_default.yaml"
    targets: ClassVar[Mapping[str, bool]] = {"summary": False}
    saved_settings: ClassVar[tuple[str, ...]] = ("columns", "max_length", "prefix")

    def __init__(
        self,
        model: str | None = None,
        *,
        columns: dict[str, str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        prefix: str | None = None,
        max_summary_length: int = 128,
        generation: Generation = AS_THE_MODEL_SAYS,
        eval_examples: int | None = 500,
        **data: Unpack[TextSource],
    ) -> None:
        name = Path(data.get("dataset") or "").name
        data["dataset_config"] = data.get("dataset_config") or HUB_CONFIGS.get(name)
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        super().__init__(model, columns=HUB_COLUMNS.get(name, {}) | (columns or {}), **sizes, **data)
        if max_summary_length < 2:
            raise UserError(f"max_summary_length={max_summary_length}: it must be at least 2 tokens.")
        if eval_examples is not None and eval_examples < 1:
            raise UserError(f"eval_examples={eval_examples}: it must be at least 1, or null for all.")
        self.prefix = prefix
        self.max_summary_length = max_summary_length
        self.generation = generation
        self.eval_examples = eval_examples

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The user's settings of generation, and the model's for the rest."""
        try:
            own = GenerationConfig.from_pretrained(self.model)
        except OSError:  # there is no such file
            own = GenerationConfig.from_model_config(self.pretrained.config)
        config = generation_config(
            self.generation, own, self.pretrained.config, task="summarization", length=self.max_summary_length
        )
        self.pretrained.length(config.max_length or config.max_new_tokens, name="generation.max_length")
        return config

    def build_model(self) -> PreTrainedModel:
        """The pretrained model, in float32, which generates by the user's settings."""
        return self._generating(super().build_model())

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder; it generates as this task's own does, so that scores compare."""
        return self._generating(super().load_model(folder))

    def _generating(self, model: PreTrainedModel) -> PreTrainedModel:
        # A copy, since a model whose vocabulary is trimmed has the token ids in it changed.
        model.generation_config = GenerationConfig.from_dict(self.generation_config.to_dict())
        return model

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A distribution for each token of a summary, ``(B, T, V)``; none for padding."""
        return outputs.logits.masked_fill(batch["labels"][..., None] == -100, -torch.inf)

    def example_inputs(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """As many tokens for the decoder as for the encoder."""
        inputs = super().example_inputs(batch_size, length)
        return inputs | {"decoder_input_ids": inputs["input_ids"]}

    def example_generation(self, tokens: int) -> Callable[[nn.Module, Mapping[str, Tensor]], Any] | None:
        """The model's own way to generate, held to so many new tokens."""

        def generate(model: Any, inputs: Mapping[str, Tensor]) -> Any:
            return model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_length=None,
                min_length=None,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                use_cache=True,
            )

        return generate

    # -- data ----------------------------------------------------------------------------------------------------------

    @property
    def text_prefix(self) -> str:
        """What is put before each text."""
        return PREFIXES.get(self.pretrained.config.model_type, "") if self.prefix is None else self.prefix

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """A text and its summary, or several, for each example."""
        examples = super().check(examples, origin=origin)
        if not hasattr(examples.features["summary"], "feature"):
            return require_texts(examples, ["summary"], origin=origin)
        for row, summaries in enumerate(examples["summary"]):
            if not summaries or not all(isinstance(summary, str) for summary in summaries):
                raise UserError(
                    f"example {row + 1} of {origin!r} has the summaries {summaries!r}: give at least one text."
                )
        return examples

    def encode_settings(self) -> dict[str, Any]:
        """The prefix and the summaries' length too."""
        return super().encode_settings() | {"prefix": self.text_prefix, "summary": self._summary_length}

    def encode(self, examples: Columns) -> Columns:
        """Tokens of the text and, as labels, of the summary."""
        texts = [self.text_prefix + text for text in examples["text"]]
        encoded = dict(self.tokenizer(texts, truncation=True, max_length=self.length))
        if "summary" in examples:
            summaries = [value if isinstance(value, str) else value[0] for value in examples["summary"]]
            targets = self.tokenizer(text_target=summaries, truncation=True, max_length=self._summary_length)
            encoded["labels"] = targets["input_ids"]
        return encoded

    @cached_property
    def _summary_length(self) -> int:
        return self.pretrained.length(self.max_summary_length, name="max_summary_length")

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads texts, and summaries with -100, which the loss passes over; the model shifts them by itself."""
        return DataCollatorForSeq2Seq(self.tokenizer, pad_to_multiple_of=self.pretrained.pad_to_multiple_of)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation examples, the longest first: `eval_examples` of them while training, later all."""
        features = self.features("validation")
        training = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if training and self.eval_examples is not None and self.eval_examples < len(features):
            chosen = np.random.default_rng(0).choice(len(features), self.eval_examples, replace=False)
            features = features.select(np.sort(chosen))
        return self._longest_first(features, "validation")

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Weather reports."""
        return generate(split)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The tokens of generated summaries."""
        generator: Any = model
        try:
            return generator.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        except (ValueError, TypeError, LookupError) as error:  # settings of a folder that do not suit its model
            raise UserError(
                f"the model {self.model!r} cannot generate ({' '.join(str(error).split())[:300]}): correct its "
                "generation_config.json and config.json, or give --task.generation."
            ) from error

    def evaluation_settings(self, metric: Metric) -> dict[str, Any]:
        """How summaries were generated, on which scores depend more than on pruning."""
        settings = {"prefix": self.text_prefix, "max_length": self.length}
        return super().evaluation_settings(metric) | settings | {"generation": recorded(self.generation_config)}

    def example_values(self, outputs: Tensor, batch: dict[str, Any]) -> Tensor:
        """ROUGE of each example, against the whole reference."""
        references = self.examples("validation")[batch["index"].tolist()]["summary"]
        pairs = zip(self._texts(outputs), references, strict=True)
        values = [rouge(summary, [given] if isinstance(given, str) else given) for summary, given in pairs]
        return torch.tensor(values, device=outputs.device)

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """F1 of ROUGE-1, -2, -L and -Lsum in per cent."""
        return {
            name: 100 * column.sum() / max(len(column), 1) for name, column in zip(NAMES, rows.unbind(1), strict=True)
        }

    def _texts(self, tokens: Tensor) -> list[str]:
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.replace("<n>", "\n").strip() for text in texts]  # how Pegasus breaks a line

    # -- prediction ----------------------------------------------------------------------------------------------------

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The examples' numbers and the tokens of their summaries."""
        return {"index": batch["index"], "tokens": self.evaluate_batch(model, batch)}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``summary``."""
        return [{"summary": text} for text in self._texts(batch["tokens"])]
