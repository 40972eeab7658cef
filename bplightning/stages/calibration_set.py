"""What a model is calibrated on where nothing is trained: a seeded choice of training examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.progress_bar import OnProgress, no_progress
from bplightning.training.calibration import CalibrationBatches, tensors


class CalibrationSet(CalibrationBatches):
    """Batches of training examples chosen at random, the same ones each time they are gone through.

    They are made once and held in memory: what is random in making them (masked tokens, for example) is the same in
    every pass. Examples of like length stand together, as in training.

    Args:
        task: What the examples are of; it must be set up.
        examples: How many to choose, 1 or more; all there are, if those are fewer.
        seed: What the choice follows from.
        device: Where the batches are needed.
        on_progress: Is told of each pass.

    Attributes:
        examples: How many there are.

    Raises:
        UserError: None are asked for, there are none, or none can be chosen from the training set.
    """

    def __init__(
        self,
        task: Task,
        *,
        examples: int,
        seed: int,
        device: torch.device | str = "cpu",
        on_progress: OnProgress = no_progress,
    ) -> None:
        require_examples(examples)
        loader: Any = task.train_dataloader()
        batch_size = _batch_size(loader)
        data = loader.dataset
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(data), generator=generator)[:examples].tolist()
        self.examples = len(chosen)
        chosen.sort(key=lambda index: _length(data[index]), reverse=True)
        made: DataLoader[Any] = DataLoader(Subset(data, chosen), batch_size=batch_size, collate_fn=loader.collate_fn)
        with isolate_rng():
            torch.manual_seed(seed)
            super().__init__([tensors(task.model_inputs(batch)) for batch in made], torch.device(device))
        self._watch, self._passes = on_progress, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self._passes += 1
        what = f"calibrating on {self.examples} training examples, pass {self._passes}"
        for index, batch in enumerate(super().__iter__()):
            self._watch(index / len(self), what)
            yield batch


def require_examples(count: int) -> None:
    """Refuse a number of calibration examples that is none.

    Raises:
        UserError: It is below 1.
    """
    if count < 1:
        raise UserError(f"calibration_examples is {count}; it must be 1 or more training examples.")


def _batch_size(loader: Any) -> int:
    """Examples of a batch of a loader whose examples can be chosen.

    Raises:
        UserError: They cannot, or there are none.
    """
    sized = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    size = (loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)) if sized else None
    if not size:
        raise UserError(
            "no calibration examples can be chosen from what the task's `train_dataloader` gives, "
            f"{type(loader).__name__} of {type(getattr(loader, 'dataset', None)).__name__}: let it give a DataLoader "
            "of a data set with `__getitem__` and `__len__`, with a batch_size, or a batch sampler that has one."
        )
    if not len(loader.dataset):
        raise UserError(
            "the task's training set is empty: there is nothing to calibrate with. Give some training data."
        )
    return int(size)


def _length(row: Any) -> int:
    """Tokens of an example; 0 where it has none."""
    return len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else 0
