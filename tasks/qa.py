"""Extractive question answering as SQuAD v1.1 asks it: the answer is a span of the given passage."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bplightning.errors import UserError
from bplightning.task import Task

from .squad_data import from_records, read_file, read_hub
from .squad_features import LABELS, POSITIONS, accepted_inputs, collate, length_grouped_sampler, tokenize
from .squad_metric import SquadMetric

Split = Literal["train", "validation"]
DEFAULT_LENGTH = 384
"""Tokens of a window in the published SQuAD settings."""

EMBEDDED_MODEL = Path(__file__).parent / "qa_start"


class QuestionAnswering(Task):
    """Extractive question answering (SQuAD v1.1): find the span of a passage that answers a question.

    With no argument it uses its embedded data set and model. The validation set serves as the test set too.

    Args:
        model: Folder or Hugging Face hub name of the pretrained model; empty for the embedded one, which fits the
            embedded data only.
        dataset: Hub name of a data set with SQuAD's columns, for example rajpurkar/squad; its splits "train" and
            "validation" are used. Give this or files.
        dataset_config: Configuration (subset) of `dataset`, where it has several.
        train_file: Training examples: SQuAD's nested JSON, flat JSON or JSON lines, or Parquet. May be left out where
            nothing is trained.
        validation_file: Validation examples, in the same formats.
        batch_size: Features (windows) of a training batch, on each device.
        eval_batch_size: Features (windows) of a validation batch, on each device.
        max_length: Tokens of a window: question, passage and special tokens. Default: 384, or what the model has
            positions for where that is less.
        stride: Tokens that two windows of one passage share; less than `max_length`.
        max_answer_length: Tokens of the longest answer that is predicted.
        n_best: Best spans that are kept of each window.
        num_workers: Processes that prepare batches, beside the main one; 0 for none.
        cache_dir: Folder for downloads and tokenized data; empty for the one of `datasets`.

    Raises:
        UserError: If the data is given twice or by halves, given without a model, or a number is out of range.
    """

    monitor: ClassVar[str] = "f1"
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "qa_default.yaml"

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        train_file: str | None = None,
        validation_file: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        max_length: int | None = None,
        stride: int = 128,
        max_answer_length: int = 30,
        n_best: int = 20,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if dataset and (train_file or validation_file):
            raise UserError(
                f"Data given twice: dataset={dataset!r} and files. Give dataset, or train_file and validation_file."
            )
        if train_file and not validation_file:
            raise UserError(
                f"train_file={train_file!r} without validation_file: give one, {self.monitor} is measured on it."
            )
        if (dataset or validation_file) and not model:
            raise UserError(
                "Data given without a model (the embedded one fits the embedded data only): give model, a folder or "
                "hub name."
            )
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_answer_length": max_answer_length}
        for name, value in (sizes | {"n_best": n_best}).items():
            if value < 1:
                raise UserError(f"{name}={value}: it must be at least 1.")
        if stride < 0 or (max_length is not None and stride >= max_length):
            raise UserError(
                f"stride={stride} with max_length={max_length}: stride must be at least 0 and below max_length."
            )
        self.model = model or str(EMBEDDED_MODEL)
        self.dataset = dataset
        self.dataset_config = dataset_config
        self.files = {"train": train_file, "validation": validation_file}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_length = max_length
        self.stride = stride
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._splits: dict[Split, tuple[Dataset, Dataset]] = {}

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, padding on the right, where windows' positions are counted from."""
        tokenizer = self._pretrained(AutoTokenizer, padding_side="right")
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer of {self.model!r} ({type(tokenizer).__name__}) is not a fast one, and only those "
                "tell which characters a token covers: choose a model with a tokenizer.json."
            )
        return tokenizer

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with a span head, in float32."""
        self._input_names  # noqa: B018  a model without a span head is refused here, with a remedy
        return self._pretrained(AutoModelForQuestionAnswering, dtype=torch.float32)

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in."""
        return AutoModelForQuestionAnswering.from_pretrained(folder)

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Tokens, attention mask, and the gold span: what the model's `forward` takes."""
        return {name: batch[name] for name in self._input_names}

    def logits(self, outputs: Any) -> Tensor:
        """Start and end logits side by side, ``(B, 2L)``."""
        return torch.cat([outputs.start_logits, outputs.end_logits], dim=-1)

    def build_metric(self) -> SquadMetric:
        """Exact match and F1 on the validation set, in per cent."""
        examples, features = self._split("validation")
        return SquadMetric(
            examples=examples, features=features, max_answer_length=self.max_answer_length, n_best=self.n_best
        )

    # -- data ----------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download, tokenize and cache on disk."""
        for split in self._available():
            self._load(split)

    def setup(self, stage: str) -> None:
        """Read what `prepare_data` cached."""
        for split in self._available():
            if stage == "fit" or split == "validation":
                self._split(split)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training features in random order, those of like length together."""
        features = self._split("train")[1]
        sampler = length_grouped_sampler(
            features["length"][:],
            batch_size=self.batch_size,
            world_size=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        return self._loader(features, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation features, the longest first."""
        features = self._split("validation")[1]
        order = np.argsort(-np.asarray(features["length"][:]), kind="stable")
        return self._loader(features.select(order), batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation set."""
        return self.val_dataloader()

    def _loader(self, features: Dataset, *, batch_size: int, sampler: Any = None) -> DataLoader[dict[str, Tensor]]:
        columns = [*accepted_inputs(self._forward, self.tokenizer.model_input_names), *LABELS, *POSITIONS]
        return DataLoader(
            features.select_columns([name for name in columns if name in features.column_names]),
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=partial(collate, collator=DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8)),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _available(self) -> list[Split]:
        return ["validation"] if self.files["validation"] and not self.files["train"] else ["train", "validation"]

    def _split(self, split: Split) -> tuple[Dataset, Dataset]:
        if split not in self._splits:
            self._splits[split] = self._load(split)
        return self._splits[split]

    def _load(self, split: Split) -> tuple[Dataset, Dataset]:
        """The examples of a split and their features; tokenized only where that is not on disk yet."""
        if split not in self._available():
            raise UserError("There is no training data, only validation_file was given: give train_file too.")
        positions = getattr(self._config, "max_position_embeddings", None)
        max_length = self.max_length or min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH)
        if positions is not None and max_length > positions:
            raise UserError(
                f"max_length={max_length} tokens, but the model {self.model!r} has {positions} positions: lower "
                "max_length (and stride, if need be)."
            )
        examples = self._read(split)
        features = tokenize(
            examples,
            tokenizer=self.tokenizer,
            max_length=max_length,
            stride=self.stride,
            cache_dir=self.cache_dir,
            description=f"Tokenizing the {split} set",
        )
        return examples, features

    def _read(self, split: Split) -> Dataset:
        if self.dataset:
            return read_hub(self.dataset, config=self.dataset_config, split=split, cache_dir=self.cache_dir)
        if file := self.files[split]:
            return read_file(file, cache_dir=self.cache_dir)
        from .qa_generated import generate  # here, since who brings data of their own does not need it

        return from_records(generate(split), origin=f"embedded {split} set")

    # -- what the model takes ------------------------------------------------------------------------------------------

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return self._pretrained(AutoConfig)

    @property
    def _forward(self) -> Any:
        kind = type(self._config)
        if kind not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
            raise UserError(
                f"The model {self.model!r} is a {self._config.model_type}, for which transformers has no "
                "question-answering head: choose another, for example a BERT."
            )
        model_class: Any = MODEL_FOR_QUESTION_ANSWERING_MAPPING[kind]
        return model_class.forward

    @cached_property
    def _input_names(self) -> list[str]:
        return accepted_inputs(self._forward, [*self.tokenizer.model_input_names, *LABELS])

    def _pretrained(self, kind: Any, **arguments: Any) -> Any:
        try:
            return kind.from_pretrained(self.model, **arguments)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"The model {self.model!r} cannot be loaded ({kind.__name__}: {error}). Give model a folder that "
                "holds config.json, the weights and the tokenizer, or a name of the Hugging Face hub, which needs the "
                "network once."
            ) from error
