"""Extractive question answering as SQuAD asks it: the answer is a span of the given passage, in v2 it may be none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.tasks.embedded.qa import generate
from bplightning.tasks.shared.batching import collate, length_grouped_sampler
from bplightning.tasks.shared.data_settings import data_settings
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL, Pretrained
from bplightning.tasks.squad.answers import Spans, find_spans
from bplightning.tasks.squad.data import from_records, read_file, read_hub
from bplightning.tasks.squad.features import LABELS, POSITIONS, tokenize
from bplightning.tasks.squad.metric import SquadMetric
from bplightning.tasks.squad.metric_v2 import SquadV2Metric
from bplightning.tasks.squad.predict import Inputs

Split = Literal["train", "validation"]


class QuestionAnswering(Task):
    """Extractive question answering (SQuAD v1.1 and v2): find the span of a passage that answers a question.

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
        n_best: Best spans that are kept of each window, and of each predicted example to share its probability.
        version_2_with_negative: Whether some questions have no answer, as in SQuAD v2; their examples have none then.
        null_score_diff_threshold: With `version_2_with_negative`: no answer is predicted where its score is ahead of
            the best span's by more than this; in logits, any number.
        num_workers: Processes that prepare batches, beside the main one; 0 for none.
        cache_dir: Folder for downloads and tokenized data; empty for the one of `datasets`.

    Raises:
        UserError: If the data is given twice or by halves, given without a model, or a number is out of range.
    """

    auto: ClassVar[Any] = AutoModelForQuestionAnswering
    monitor: ClassVar[str] = "f1"
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "qa_default.yaml"
    saved_settings: ClassVar[tuple[str, ...]] = (
        "max_length",
        "stride",
        "max_answer_length",
        "n_best",
        "version_2_with_negative",
        "null_score_diff_threshold",
    )

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
        version_2_with_negative: bool = False,
        null_score_diff_threshold: float = 0.0,
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
        if null_score_diff_threshold and not version_2_with_negative:
            raise UserError(
                f"null_score_diff_threshold={null_score_diff_threshold:g} without version_2_with_negative: every "
                "question has an answer then. Set version_2_with_negative, or leave the threshold out."
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
        self.version_2_with_negative = version_2_with_negative
        self.null_score_diff_threshold = null_score_diff_threshold
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._pretrained = Pretrained(
            self.model,
            AutoModelForQuestionAnswering,
            head="question-answering head",
            labels=LABELS,
            default_length=384,  # of the published SQuAD settings
            right_padding=True,  # windows' positions are counted from there
        )
        self._splits: dict[Split, tuple[Dataset, Dataset]] = {}
        self._inputs: Inputs | None = None

    # -- model ---------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, padding on the right, where windows' positions are counted from."""
        return self._pretrained.tokenizer

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with a span head, in float32."""
        return self._pretrained.build()

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in."""
        return AutoModelForQuestionAnswering.from_pretrained(folder)

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Tokens, attention mask, and the gold span where there is one: what the model's `forward` takes."""
        return {name: batch[name] for name in self._pretrained.input_names if name in batch}

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Where the answer starts and where it ends, ``(B, 2, L)``; never in padding."""
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
        return logits.masked_fill(batch["attention_mask"][:, None] == 0, -torch.inf)

    def build_metric(self) -> SquadMetric:
        """Exact match and F1 on the validation set, in per cent."""
        examples, features = self._split("validation")
        data = {"examples": examples, "features": features}
        if self.version_2_with_negative:
            return SquadV2Metric(**data, **self._span_limits, null_score_diff_threshold=self.null_score_diff_threshold)
        return SquadMetric(**data, **self._span_limits)

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.dataset, self.dataset_config, self.files["validation"])

    # -- data ----------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download, tokenize and cache on disk; nothing of it where only `read_inputs`' examples are predicted."""
        if self.trainer and self.trainer.predicting:
            return
        for split in self._available():
            self._load(split)

    def setup(self, stage: str) -> None:
        """Read what `prepare_data` cached."""
        for split in self._available():
            if stage == "fit" or (split == "validation" and stage != "predict"):
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
        return self._longest_first(self._split("validation")[1])

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation set."""
        return self.val_dataloader()

    # -- prediction ----------------------------------------------------------------------------------------------------

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take questions to answer: ``question`` and ``context`` each, and maybe ``id``; other keys are left aside."""
        length = self._pretrained.length(self.max_length)
        self._inputs = Inputs(records, places, tokenizer=self.tokenizer, max_length=length, stride=self.stride)

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The features of `read_inputs`' examples, the longest first."""
        return self._longest_first(self._given().features, without=LABELS)

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> Spans:
        """The best spans of the batch's features, on their device."""
        return find_spans(model(**self.model_inputs(batch)), batch, **self._span_limits)

    def predictions(self, batches: Sequence[Spans]) -> list[dict[str, Any]]:
        """For each example ``answer``, ``score``, ``start`` and ``end``, as `squad_predict.Inputs.answers` says."""
        threshold = self.null_score_diff_threshold if self.version_2_with_negative else None
        return self._given().answers(batches, n_best=self.n_best, null_score_diff_threshold=threshold)

    def _given(self) -> Inputs:
        if self._inputs is None:
            raise UserError("There is nothing to predict: give examples with `read_inputs` first.")
        return self._inputs

    # -- what the hooks above share ------------------------------------------------------------------------------------

    @property
    def _span_limits(self) -> dict[str, int]:
        return {"max_answer_length": self.max_answer_length, "n_best": self.n_best}

    def _longest_first(self, features: Dataset, *, without: Sequence[str] = ()) -> DataLoader[dict[str, Tensor]]:
        order = np.argsort(-np.asarray(features["length"][:]), kind="stable")
        return self._loader(features.remove_columns(list(without)).select(order), batch_size=self.eval_batch_size)

    def _loader(self, features: Dataset, *, batch_size: int, sampler: Any = None) -> DataLoader[dict[str, Tensor]]:
        columns = [*self._pretrained.input_names, *POSITIONS]
        return DataLoader(
            features.select_columns([name for name in columns if name in features.column_names]),
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=partial(collate, collator=self._collator()),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _collator(self) -> DataCollatorWithPadding:
        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self._pretrained.pad_to_multiple_of)

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
        max_length = self._pretrained.length(self.max_length)
        examples = self._read(split)
        features = tokenize(
            examples,
            tokenizer=self.tokenizer,
            max_length=max_length,
            stride=self.stride,
            may_lack_answers=self.version_2_with_negative,
            cache_dir=self.cache_dir,
            description=f"Tokenizing the {split} set",
        )
        return examples, features

    def _read(self, split: Split) -> Dataset:
        if self.dataset:
            return read_hub(self.dataset, config=self.dataset_config, split=split, cache_dir=self.cache_dir)
        if file := self.files[split]:
            return read_file(file, cache_dir=self.cache_dir)
        return from_records(generate(split), origin=f"embedded {split} set")
