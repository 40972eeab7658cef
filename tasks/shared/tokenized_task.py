"""The base of every task on text: its model and tokenizer, tokens cached on disk, batches of similar lengths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from bplightning.errors import UserError
from bplightning.tasks.shared.batching import length_grouped_sampler
from bplightning.tasks.shared.data_task import Data, DataTask, Source, Split
from bplightning.tasks.shared.pretrained import Pretrained
from bplightning.tasks.shared.table import from_records, read_file


class TextSource(Source, total=False):
    """Arguments of `TokenizedTask` that every task on text passes on."""

    train_file: str | None
    validation_file: str | None
    max_length: int | None


class TextData(TextSource, Data, total=False):
    """All arguments of `TokenizedTask` but the model."""


class TokenizedTask(DataTask):
    """A task on text, whatever its tokens and metrics are; most tasks derive from `TextTask`, which adds to it.

    Args:
        train_file: Training examples: JSON lines, CSV, TSV or Parquet. May be left out where nothing is trained.
        validation_file: Validation examples, in the same formats.
        max_length: Tokens of an example, what is longer is cut. Default: the task's own, or what the model has
            positions for where that is less.

    Attributes:
        auto: The Auto class that puts the head on.
        head: What that head is called in messages.
        label_names: What the model's `forward` takes in addition to what the tokenizer makes.
        pads_right: Whether to pad on the right whatever the tokenizer does, for a head that counts positions.
        default_length: Tokens of an example where `max_length` is not given.
    """

    auto: ClassVar[Any]
    head: ClassVar[str]
    label_names: ClassVar[Sequence[str]] = ("labels",)
    pads_right: ClassVar[bool] = False
    default_length: ClassVar[int] = 128
    inputs: ClassVar[Mapping[str, bool]] = {"text": False}
    left_out: ClassVar[Sequence[str]] = ("length",)
    saved_settings: ClassVar[tuple[str, ...]] = ("columns", "max_length")

    def __init__(
        self,
        model: str | None = None,
        *,
        train_file: str | None = None,
        validation_file: str | None = None,
        max_length: int | None = None,
        **data: Unpack[Data],
    ) -> None:
        super().__init__(model, sources={"train": train_file, "validation": validation_file}, **data)
        if max_length is not None and max_length < 4:
            raise UserError(f"max_length={max_length}: it must be at least 4 tokens.")
        self.max_length = max_length
        self._given: Dataset | None = None

    @abstractmethod
    def generate(self, split: Split) -> list[dict[str, Any]]:
        """The embedded data set, made up the same in every process: records with the task's columns."""

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def pretrained(self) -> Pretrained:
        """The model as it is given."""
        return Pretrained(
            self.model,
            self.auto,
            head=self.head,
            labels=self.label_names,
            default_length=self.default_length,
            right_padding=self.pads_right,
            # An embedded model may come without weights; a user's folder without them is a mistake.
            seed=0 if self.model == str(self.embedded_model) else None,
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.pretrained.tokenizer

    @cached_property
    def length(self) -> int:
        """Tokens of an example: `max_length`, or the default."""
        return self.pretrained.length(self.max_length)

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with the task's head, in float32."""
        return self.pretrained.build()

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in."""
        return self.pretrained.padded_alike(self.auto.from_pretrained(folder, trust_remote_code=False))

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The entries of a batch that the model's `forward` takes."""
        return {name: batch[name] for name in self.pretrained.input_names if name in batch}

    # -- data ----------------------------------------------------------------------------------------------------------

    def read_source(self, source: str) -> Dataset:
        return read_file(source, wanted=self.wanted, cache_dir=self.cache_dir)

    def read_embedded(self, split: Split) -> Dataset:
        return from_records(self.generate(split), origin=f"the embedded {split} set")

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads tokens to the longest example."""
        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self.pretrained.pad_to_multiple_of)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training features in random order, those of similar length together."""
        features = self.features("train")
        sampler = length_grouped_sampler(
            features["length"][:],
            batch_size=self.batch_size,
            world_size=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        return self.loader(features, "train", batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation features, the longest first."""
        return self._longest_first(self.features("validation"), "validation")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The features of what `read_inputs` took, the longest first."""
        if self._given is None:
            raise UserError("There is nothing to predict: give examples with `read_inputs` first.")
        return self._longest_first(self._given, None)

    def _longest_first(self, features: Dataset, split: Split | None) -> DataLoader[dict[str, Tensor]]:
        order = np.argsort(-np.asarray(features["length"][:]), kind="stable")
        return self.loader(features.select(order), split, batch_size=self.eval_batch_size)
