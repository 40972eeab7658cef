"""The base of tasks on text that have one row of tokens and one row of measured numbers an example."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from bplightning.errors import UserError
from bplightning.tasks.shared.data_task import Split, ids_of
from bplightning.tasks.shared.example_metric import ExampleMetric
from bplightning.tasks.shared.table import require_rows, require_texts
from bplightning.tasks.shared.token_cache import tokenized, tokenizer_state
from bplightning.tasks.shared.tokenized_task import TokenizedTask

Columns = dict[str, list[Any]]
"""Examples as `datasets` hands them to a function: column name to values."""


class TextTask(TokenizedTask):
    """A task on text: a subclass defines its columns, how they become tokens and labels, and what is measured.

    With no argument it uses its embedded data set and model. The validation set serves as the test set too.

    Raises:
        UserError: The data is given twice or in part, or without a model, or a number is out of range.
    """

    # -- what a subclass gives -----------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, examples: Columns) -> Columns:
        """Tokens, and labels where `examples` has the columns of `targets`.

        Args:
            examples: The task's columns under the task's own names.

        Returns:
            ``input_ids`` and what else goes into a batch; no attention mask, which padding makes. ``length`` where it
            is not the tokens of ``input_ids``.
        """

    def encode_inputs(self, examples: Columns) -> Columns:
        """What `encode` gives for examples to be predicted, by default the same.

        Args:
            examples: The columns of `inputs`.
        """
        return self.encode(examples)

    def encode_settings(self) -> dict[str, Any]:
        """All that `encode` depends on apart from examples and tokenizer: it names the tokenized data on disk."""
        return {"max_length": self.length}

    @abstractmethod
    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A row of numbers ``(B, V)`` for each example: all that `scores` needs."""

    @abstractmethod
    def scores(self, rows: Tensor) -> dict[str, Any]:
        """The metrics of all examples, each seen once.

        Args:
            rows: ``(N, V)``, float64, on the processor.
        """

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Refuse examples whose inputs are not texts."""
        return require_texts(examples, self.inputs, origin=origin)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The model's logits, `B` first."""
        return outputs.logits

    def build_metric(self) -> ExampleMetric:
        """The task's metrics."""
        return ExampleMetric(self.example_values, self.scores)

    def evaluation_settings(self, metric: Any) -> dict[str, Any]:
        """How many examples were evaluated."""
        return {"examples": metric.examples}

    def evaluation_details(self, metric: Any) -> dict[str, Any]:
        """The intervals of the metrics."""
        return {"intervals": metric.intervals()}

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_features(self, split: Split) -> Dataset:
        """The tokenized examples, with ``length`` (tokens) and ``index``; only tokenized if not on disk yet."""
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
        """Take records with the columns of `inputs`, called as in the data; other keys make no difference."""
        if not records:
            raise UserError(f"The inputs hold no record: give at least one, with {', '.join(map(repr, self.inputs))}.")
        records, called = [self.wanted.own_record(record) for record in records], self.wanted.names
        names = [name for name, optional in self.inputs.items() if not optional or any(name in r for r in records)]
        for place, record in zip(places, records, strict=True):
            for name in names:
                self.check_input(called[name], record.get(name), place=place)
        self._ids = ids_of(records)
        rows = require_rows(Dataset.from_dict({name: [r[name] for r in records] for name in names}), origin="inputs")
        features = Dataset.from_dict(_with_length(self.encode_inputs(rows[:])))
        self._given = features.add_column("index", np.arange(len(features)))

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """Refuse a value that is not what a column must hold; by default it must be text.

        Args:
            name: What the column is called in the data.
            value: Its value.
            place: Where it stands, for messages.

        Raises:
            UserError: It is not; the message names its place.
        """
        if not isinstance(value, str):
            raise UserError(f"{place} must have {name!r}, a text; it has {value!r}.")

    def predict_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The examples' numbers and logits."""
        return {"index": batch["index"], "logits": model(**self.model_inputs(batch)).logits}


def _with_length(encoded: Columns) -> Columns:
    kept = {name: values for name, values in encoded.items() if name != "attention_mask"}  # padding makes it
    return {"length": [len(ids) for ids in encoded["input_ids"]]} | kept


def _sources(cls: type) -> list[str]:
    """The files that a task's class and those it derives from are written in, this one included."""
    files = (inspect.getsourcefile(base) for base in cls.__mro__ if issubclass(base, TextTask))
    return sorted({file for file in files if file is not None and Path(file).is_file()})  # none of one typed in
