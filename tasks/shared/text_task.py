"""What tasks on text share: data from the hub, files or made up, tokenized once; batches; prediction."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.tasks.shared.batching import collate, length_grouped_sampler
from bplightning.tasks.shared.data_settings import data_settings
from bplightning.tasks.shared.example_metric import ExampleMetric
from bplightning.tasks.shared.pretrained import Pretrained
from bplightning.tasks.shared.table import (
    from_records,
    hub_split,
    own_columns,
    read_file,
    read_hub,
    require_rows,
    require_texts,
)
from bplightning.tasks.shared.token_cache import tokenized, tokenizer_state

Split = Literal["train", "validation"]
Columns = dict[str, list[Any]]
"""Examples as `datasets` hands them to a function: column name to values."""


class TextTask(Task):
    """A task on text: a subclass says what its columns are, how they become tokens and labels, and what is measured.

    With no argument it uses its embedded data set and model. The validation set serves as the test set too.

    Args:
        model: Folder or Hugging Face hub name of the pretrained model; empty for the embedded one.
        dataset: Hub name of a data set; its splits "train" and "validation" are used, or "test" where it has
            no "validation". Give this or files.
        dataset_config: Configuration (subset) of `dataset`, where it has several.
        train_file: Training examples: JSON lines, CSV, TSV or Parquet. May be left out where nothing is trained.
        validation_file: Validation examples, in the same formats.
        columns: What the task's columns are called in the data, where they have other names.
        batch_size: Examples of a training batch, on each device.
        eval_batch_size: Examples of a validation batch, on each device.
        max_length: Tokens of an example, what is longer is cut. Default: the task's own, or what the model has
            positions for where that is less.
        num_workers: Processes that prepare batches, beside the main one; 0 for none.
        cache_dir: Folder for downloads and tokenized data; empty for the one of `datasets`.

    Raises:
        UserError: If the data is given twice or by halves, given without a model, or a number is out of range.

    Attributes:
        auto: The Auto class that puts the head on the model.
        head: What that head is called in messages.
        default_length: Tokens of an example, where nothing is said.
        embedded_model: Folder of the embedded model.
        inputs: The task's columns that a prediction needs, to whether one may be missing.
        targets: The task's further columns, likewise: what is to be learned.
    """

    auto: ClassVar[Any]
    head: ClassVar[str]
    default_length: ClassVar[int] = 128
    embedded_model: ClassVar[Path]
    inputs: ClassVar[Mapping[str, bool]] = {"text": False}
    targets: ClassVar[Mapping[str, bool]] = {}
    saved_settings: ClassVar[tuple[str, ...]] = ("max_length",)

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        train_file: str | None = None,
        validation_file: str | None = None,
        columns: dict[str, str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int | None = None,
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
                f"train_file={train_file!r} without validation_file: give one, the model is measured on it."
            )
        if (dataset or validation_file) and not model:
            raise UserError(
                "Data given without a model (the embedded one fits the embedded data only): give model, a folder or "
                "hub name."
            )
        known = [*self.inputs, *self.targets]
        for name in columns or {}:
            if name not in known:
                raise UserError(f"columns names {name!r}, which is no column of this task: it has {', '.join(known)}.")
        least = {
            "batch_size": (batch_size, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "num_workers": (num_workers, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise UserError(f"{name}={value}: it must be at least {bound}.")
        if max_length is not None and max_length < 4:
            raise UserError(f"max_length={max_length}: it must be at least 4 tokens.")
        self.model = model or str(self.embedded_model)
        self.dataset = dataset
        self.dataset_config = dataset_config
        self.files = {"train": train_file, "validation": validation_file}
        self.columns = dict(columns or {})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_length = max_length
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._tables: dict[Split, tuple[Dataset, str]] = {}
        self._examples: dict[Split, Dataset] = {}
        self._features: dict[Split, Dataset] = {}
        self._given: Dataset | None = None

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def generate(self, split: Split) -> list[dict[str, Any]]:
        """The embedded data set, made up the same in every process: records with the task's columns."""

    @abstractmethod
    def encode(self, examples: Columns) -> Columns:
        """Tokens, and labels where `examples` has the columns of `targets`.

        Args:
            examples: The task's columns under the task's own names.

        Returns:
            ``input_ids`` and what else goes into a batch; no attention mask, which padding makes.
        """

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Refuse examples that break the task's rules, and return them; by default the inputs must be texts.

        Args:
            examples: The task's columns under the task's own names.
            origin: Where they come from, for messages.

        Raises:
            UserError: An example breaks a rule; the message says which one.
        """
        return require_texts(examples, self.inputs, origin=origin)

    def encode_inputs(self, examples: Columns) -> Columns:
        """What `encode` gives of examples to be predicted, by default the same.

        Args:
            examples: The columns of `inputs`.
        """
        return self.encode(examples)

    def encode_settings(self) -> dict[str, Any]:
        """All that `encode` depends on beside examples and tokenizer: tokenized data on disk is named by it."""
        return {"max_length": self.length}

    @abstractmethod
    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A row of numbers ``(B, V)`` of each example: all that `scores` needs."""

    @abstractmethod
    def scores(self, rows: Tensor) -> dict[str, Any]:
        """The metrics of all examples, each seen once.

        Args:
            rows: ``(N, V)``, float64, on the processor.
        """

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """From rows of `encode` to a batch.

        Args:
            split: What the rows are of: drawing at random is for ``"train"`` only; `None` for those to be predicted.
        """
        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self.pretrained.pad_to_multiple_of)

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def pretrained(self) -> Pretrained:
        """The model as it is given."""
        # An embedded model may come without weights; a user's folder without them is a mistake.
        seed = 0 if self.model == str(self.embedded_model) else None
        return Pretrained(self.model, self.auto, head=self.head, default_length=self.default_length, seed=seed)

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
        return self.pretrained.padded_alike(self.auto.from_pretrained(folder))

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What of a batch the model's `forward` takes."""
        return {name: batch[name] for name in self.pretrained.input_names if name in batch}

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The model's logits, `B` first."""
        return outputs.logits  # type: ignore[no-any-return]

    def build_metric(self) -> ExampleMetric:
        """The task's metrics."""
        return ExampleMetric(self.example_values, self.scores)

    def evaluation_settings(self, metric: Any) -> dict[str, Any]:
        """How many examples were evaluated."""
        return {"examples": metric.examples}

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.dataset, self.dataset_config, self.files["validation"])

    # -- data ----------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download, tokenize and cache on disk; nothing of it where only `read_inputs`' examples are predicted."""
        if self.trainer and self.trainer.predicting:
            return
        for split in self.splits:
            self._load(split)

    def setup(self, stage: str) -> None:
        """Read what `prepare_data` cached."""
        for split in self.splits:
            if stage == "fit" or (split == "validation" and stage != "predict"):
                self.features(split)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training examples in random order, those of like length together."""
        features = self.features("train")
        sampler = length_grouped_sampler(
            features["length"][:],
            batch_size=self.batch_size,
            world_size=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        return self.loader(features, "train", batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation examples, the longest first."""
        return self._longest_first(self.features("validation"), "validation")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation set."""
        return self.val_dataloader()

    @property
    def splits(self) -> list[Split]:
        """The splits there are: no training set where only validation_file is given."""
        return ["validation"] if self.files["validation"] and not self.files["train"] else ["train", "validation"]

    def examples(self, split: Split) -> Dataset:
        """The examples of a split, checked: the task's columns under the task's own names.

        Raises:
            UserError: If there is no such data, or it breaks a rule.
        """
        if split not in self._examples:
            table, origin = self.table(split)
            self._examples[split] = self.check(table, origin=origin)
        return self._examples[split]

    def table(self, split: Split) -> tuple[Dataset, str]:
        """The examples of a split, not yet checked, and what to call them in messages."""
        if split not in self.splits:
            raise UserError("There is no training data, only validation_file was given: give train_file too.")
        if split not in self._tables:
            table, origin = self.read(split)
            columns = own_columns(table, self.inputs | self.targets, self.columns, origin=origin)
            self._tables[split] = columns, origin
        return self._tables[split]

    def features(self, split: Split) -> Dataset:
        """The tokenized examples of a split, with ``length`` (tokens) and ``index`` (number of the example)."""
        if split not in self._features:
            self._features[split] = self._load(split)
        return self._features[split]

    def read(self, split: Split) -> tuple[Dataset, str]:
        """The data of a split as it is given, and what to call it in messages."""
        if self.dataset:
            name = hub_split(self.dataset, config=self.dataset_config, split=split)
            rows = read_hub(self.dataset, config=self.dataset_config, split=name, cache_dir=self.cache_dir)
            return rows, f"{self.dataset} ({name})"
        if file := self.files[split]:
            return read_file(file, cache_dir=self.cache_dir), file
        return from_records(self.generate(split), origin="embedded"), f"the embedded {split} set"

    def _load(self, split: Split) -> Dataset:
        """The features of a split; tokenized only where that is not on disk yet."""
        sources = [Path(file).read_text(encoding="utf-8") for file in _sources(type(self))]
        depends_on = [type(self).__qualname__, sources, self.encode_settings(), tokenizer_state(self.tokenizer)]
        return tokenized(
            self.examples(split),
            self._encoded,
            depends_on=depends_on,
            index="index",
            cache_dir=self.cache_dir,
            description=f"Tokenizing the {split} set",
        )

    def _encoded(self, examples: Columns) -> Columns:
        return _with_length(self.encode(examples))

    # -- prediction ----------------------------------------------------------------------------------------------------

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take records with the columns of `inputs`; other keys make no difference."""
        if not records:
            raise UserError(f"The inputs hold no record: give at least one, with {', '.join(map(repr, self.inputs))}.")
        names = [name for name, optional in self.inputs.items() if not optional or any(name in r for r in records)]
        for place, record in zip(places, records, strict=True):
            for name in names:
                self.check_input(name, record.get(name), place=place)
        self._ids = [{"id": record["id"]} if "id" in record else {} for record in records]
        rows = require_rows(Dataset.from_dict({name: [r[name] for r in records] for name in names}), origin="inputs")
        features = Dataset.from_dict(_with_length(self.encode_inputs(rows[:])))
        self._given = features.add_column("index", np.arange(len(features)))

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """Refuse a value that is not what column `name` must hold; by default it must be text.

        Raises:
            UserError: It is not; the message names its place.
        """
        if not isinstance(value, str):
            raise UserError(f"{place} must have {name!r}, a text; it has {value!r}.")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The examples of `read_inputs`, the longest first."""
        if self._given is None:
            raise UserError("There is nothing to predict: give examples with `read_inputs` first.")
        return self._longest_first(self._given, None)

    def predict_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The examples' numbers and logits."""
        return {"index": batch["index"], "logits": model(**self.model_inputs(batch)).logits}

    def predictions(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What `answers` makes of each batch, in the order of the records, each with its ``id`` where it has one."""
        found: dict[int, dict[str, Any]] = {}
        for batch in batches:
            found |= dict(zip(batch["index"].tolist(), self.answers(batch), strict=True))
        return [{**given, **found[index]} for index, given in enumerate(self._ids)]

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to one batch, ready for JSON.

        Args:
            batch: What `predict_batch` gave.
        """
        raise NotImplementedError

    # -- loaders -------------------------------------------------------------------------------------------------------

    def _longest_first(self, features: Dataset, split: Split | None) -> DataLoader[dict[str, Tensor]]:
        order = np.argsort(-np.asarray(features["length"][:]), kind="stable")
        return self.loader(features.select(order), split, batch_size=self.eval_batch_size)

    def loader(
        self, features: Dataset, split: Split | None, *, batch_size: int, sampler: Any = None
    ) -> DataLoader[dict[str, Tensor]]:
        """Batches of tokenized examples.

        Args:
            features: As `features` gives them.
            split: What they are of; `None` for those to be predicted.
            batch_size: Examples of a batch.
            sampler: The order; by default as they are.
        """
        return DataLoader(
            features.remove_columns("length"),
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=partial(collate, collator=self.collator(split)),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _with_length(encoded: Columns) -> Columns:
    kept = {name: values for name, values in encoded.items() if name != "attention_mask"}  # padding makes it
    return kept | {"length": [len(ids) for ids in encoded["input_ids"]]}


def _sources(cls: type) -> list[str]:
    """The files that a task's class and those it derives from are written in, this one included."""
    files = (inspect.getsourcefile(base) for base in cls.__mro__ if issubclass(base, TextTask))
    return sorted({file for file in files if file is not None and Path(file).is_file()})  # none of one typed in
