"""The base of tasks that read examples from files, folders or the hub: where data comes from, batches, answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.tasks.shared.batching import collate
from bplightning.tasks.shared.data_settings import data_settings
from bplightning.tasks.shared.inherited_arguments import spell_out
from bplightning.tasks.shared.table import hub_split, own_columns, read_hub
from bplightning.tasks.shared.wanted_columns import Wanted

Split = Literal["train", "validation"]


class Source(TypedDict, total=False):
    """Arguments of `DataTask` that every task passes on."""

    dataset: str | None
    dataset_config: str | None
    num_workers: int
    cache_dir: str | None


class Data(Source, total=False):
    """`Source`, and the arguments that some tasks have a say in."""

    columns: dict[str, str] | None
    batch_size: int
    eval_batch_size: int


class DataTask(Task):
    """A task whose examples come from files, folders or the hub, and which has embedded data for when none is given.

    A subclass's constructor may pass arguments on as ``**data: Unpack[Data]``: they are arguments of the command line
    like its own. The validation set serves as the test set too.

    Args:
        model: Folder or Hugging Face hub name of the pretrained model; empty for the embedded one.
        sources: File or folder of each split, `None` where there is none: a subclass gives it, from arguments of its
            own such as `train_file`.
        dataset: Hub name of a data set; its splits "train" and "validation" are used, or "test" where it has
            no "validation". Give this or files.
        dataset_config: Configuration (subset) of `dataset`, where it has several.
        columns: What the task's columns are called in the data, where they have other names.
        batch_size: Examples of a training batch, on each device.
        eval_batch_size: Examples of a validation batch, on each device.
        num_workers: Processes that prepare batches, in addition to the main one; 0 for none.
        cache_dir: Folder for downloads and tokenized data; empty for the one of `datasets`.

    Raises:
        UserError: The data is given twice or in part, or without a model, or a number is out of range.

    Attributes:
        kind: What a source is, ``"file"`` or ``"folder"``: its arguments are ``train_file`` and so on.
        embedded_model: Folder of the embedded model.
        inputs: The columns that a prediction needs, each with whether it may be missing.
        targets: The other columns, with what is to be learned, in the same form.
        left_out: Columns of `features` that no batch needs.
    """

    kind: ClassVar[str] = "file"
    embedded_model: ClassVar[Path]
    inputs: ClassVar[Mapping[str, bool]]
    targets: ClassVar[Mapping[str, bool]] = {}
    left_out: ClassVar[Sequence[str]] = ()
    saved_settings: ClassVar[tuple[str, ...]] = ("columns",)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        spell_out(cls)

    def __init__(
        self,
        model: str | None = None,
        *,
        sources: Mapping[Split, str | None],
        dataset: str | None = None,
        dataset_config: str | None = None,
        columns: dict[str, str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.sources = dict(sources)
        self.dataset = dataset
        self.dataset_config = dataset_config
        self._require_data(model)
        known = [*self.inputs, *self.targets]
        for name, there in (columns or {}).items():
            if name not in known:
                raise UserError(f"columns names {name!r}, which is no column of this task: it has {', '.join(known)}.")
            if not isinstance(there, str):
                raise UserError(f"columns says that {name!r} is called {there!r}: give the name of a column, a text.")
        require_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        require_at_least(0, num_workers=num_workers)
        self.model = model or str(self.embedded_model)
        self.columns = dict(columns or {})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._tables: dict[Split, tuple[Dataset, str]] = {}
        self._examples: dict[Split, Dataset] = {}
        self._features: dict[Split, Dataset] = {}
        self._ids: list[dict[str, Any]] = []

    def _require_data(self, model: str | None) -> None:
        """Refuse data that is given twice, in part, or without a model."""
        train, validation, kind = self.sources["train"], self.sources["validation"], self.kind
        if self.dataset and (train or validation):
            raise UserError(
                f"Data given twice: dataset={self.dataset!r} and {kind}s. Give dataset, or train_{kind} and "
                f"validation_{kind}."
            )
        if train and not validation:
            raise UserError(f"train_{kind}={train!r} without validation_{kind}: give one, the model is measured on it.")
        if (self.dataset or validation) and not model:
            raise UserError(
                "Data given without a model (the embedded one fits the embedded data only): give model, a folder or "
                "hub name."
            )

    # -- what a subclass gives -----------------------------------------------------------------------------------------

    @abstractmethod
    def read_source(self, source: str) -> Dataset:
        """The rows of a file or a folder.

        Args:
            source: Its path.
        """

    @abstractmethod
    def read_embedded(self, split: Split) -> Dataset:
        """The rows of the embedded data set, the same in every process."""

    @abstractmethod
    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Refuse examples that break the task's rules, and return them.

        Args:
            examples: The task's columns under the task's own names.
            origin: Where they come from, for messages.

        Raises:
            UserError: An example breaks a rule; the message says which one.
        """

    @abstractmethod
    def load_features(self, split: Split) -> Dataset:
        """What batches are made of, with the number ``index`` of each row's example."""

    @abstractmethod
    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """From rows of `features` to a batch.

        Args:
            split: Where the rows are from: only ``"train"`` may draw at random; `None` for those to be predicted.
        """

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to one batch, ready for JSON.

        Args:
            batch: What `predict_batch` gave.
        """
        raise NotImplementedError

    def sample_records(self, count: int) -> list[dict[str, Any]]:
        """Examples of the validation set, evenly spread, with the columns of `inputs` and `targets`."""
        examples = self.examples("validation")
        places = sorted({len(examples) * place // count for place in range(count)})
        rows = examples.select(places).to_list()
        return [{name: row[name] for name in (*self.inputs, *self.targets) if name in row} for row in rows]

    # -- data ----------------------------------------------------------------------------------------------------------

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.dataset, self.dataset_config, self.sources["validation"])

    def prepare_data(self) -> None:
        """Download, prepare and cache on disk; nothing where only the examples of `read_inputs` are predicted."""
        if self.trainer and self.trainer.predicting:
            return
        for split in self.splits:
            self.load_features(split)

    def setup(self, stage: str) -> None:
        """Read what `prepare_data` cached."""
        for split in self.splits:
            if stage == "fit" or (split == "validation" and stage != "predict"):
                self.features(split)

    @property
    def wanted(self) -> Wanted:
        """The columns of the data that the task reads; no other is looked at."""
        return Wanted({**self.inputs, **self.targets}, self.columns)

    @property
    def splits(self) -> list[Split]:
        """The splits that exist: no training set where only a validation set is given."""
        return ["validation"] if self.sources["validation"] and not self.sources["train"] else ["train", "validation"]

    def features(self, split: Split) -> Dataset:
        """What `load_features` gives, kept."""
        if split not in self._features:
            self._features[split] = self.load_features(split)
        return self._features[split]

    def examples(self, split: Split) -> Dataset:
        """The examples of a split, checked: the task's columns under the task's own names.

        Raises:
            UserError: There is no such data, or it breaks a rule.
        """
        if split not in self._examples:
            table, origin = self.table(split)
            self._examples[split] = self.check(table, origin=origin)
        return self._examples[split]

    def table(self, split: Split) -> tuple[Dataset, str]:
        """The examples of a split, not yet checked, and what to call them in messages."""
        if split not in self.splits:
            raise UserError(
                f"There is no training data, only validation_{self.kind} was given: give train_{self.kind} too."
            )
        if split not in self._tables:
            table, origin = self.read(split)
            self._tables[split] = own_columns(table, self.wanted.own, self.wanted.given, origin=origin), origin
        return self._tables[split]

    def read(self, split: Split) -> tuple[Dataset, str]:
        """The data of a split as it is given, and what to call it in messages."""
        if self.dataset:
            name = hub_split(self.dataset, config=self.dataset_config, split=split)
            rows = read_hub(self.dataset, config=self.dataset_config, split=name, cache_dir=self.cache_dir)
            return rows, f"{self.dataset} ({name})"
        if source := self.sources[split]:
            return self.read_source(source), source
        return self.read_embedded(split), f"the embedded {split} set"

    # -- batches and answers -------------------------------------------------------------------------------------------

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation set."""
        return self.val_dataloader()

    def loader(
        self, features: Dataset, split: Split | None, *, batch_size: int, **order: Any
    ) -> DataLoader[dict[str, Tensor]]:
        """Batches of rows.

        Args:
            features: As `features` gives them.
            split: Where they are from; `None` for those to be predicted.
            batch_size: Rows of a batch.
            **order: ``shuffle`` or ``sampler`` of a `DataLoader`; by default the order that the rows have.
        """
        return DataLoader(
            features.remove_columns([name for name in self.left_out if name in features.column_names]),
            batch_size=batch_size,
            collate_fn=partial(collate, collator=self.collator(split)),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **order,
        )

    def predictions(self, batches: Sequence[Any]) -> list[dict[str, Any]]:
        """What `answers` makes of each batch, in the order of the records, each with its ``id`` where it has one."""
        found: dict[int, dict[str, Any]] = {}
        for batch in batches:
            found |= dict(zip(batch["index"].tolist(), self.answers(batch), strict=True))
        return [{**given, **found[index]} for index, given in enumerate(self._ids)]


def require_at_least(least: int, **numbers: int) -> None:
    """Refuse arguments that are too small.

    Args:
        least: The smallest value allowed.
        **numbers: The arguments, by name.

    Raises:
        UserError: One is smaller.
    """
    for name, value in numbers.items():
        if value < least:
            raise UserError(f"{name}={value}: it must be at least {least}.")


def ids_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What goes before the answer to each record: its ``id``, where it has one.

    >>> ids_of([{"id": 7, "text": "a"}, {"text": "b"}])
    [{'id': 7}, {}]
    """
    return [{"id": record["id"]} if "id" in record else {} for record in records]
