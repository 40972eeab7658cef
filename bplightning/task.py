"""The task contract: what a network is pruned for.

A task is a `LightningDataModule` that also knows its model, its loss and its metrics. It knows nothing of pruning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bplightning.errors import UserError


class Task(LightningDataModule, ABC):
    """What a network is pruned for: model class, data, loss, logits, metrics.

    Lightning's own data hooks (`prepare_data`, `setup`, `train_dataloader`, `val_dataloader`, `test_dataloader`,
    `predict_dataloader`) are part of the contract: `prepare_data` does slow work once (download, tokenize, cache on
    disk), `setup` loads its result.

    `predict` builds a task for a saved model by giving the folder as the constructor's argument `model`, beside the
    `saved_settings`; its ``--batch_size`` sets the attribute `eval_batch_size`, where the task has one.

    Attributes:
        monitor: The metric that says which model is best, a key of what `build_metric().compute()` returns.
        monitor_mode: ``"max"`` or ``"min"``.
        embedded_recipe: YAML with the settings that suit the task's embedded data set; `fit` starts from it when the
            user names no model and no data of their own. `None` where the task has none.
        saved_settings: Constructor arguments, each an attribute too, that prediction needs (lengths, thresholds); their
            values are written beside a compact model, and read from there by `predict`.
    """

    monitor: ClassVar[str]
    monitor_mode: ClassVar[str] = "max"
    embedded_recipe: ClassVar[Path | None] = None
    saved_settings: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, saved beside the model."""

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """A fresh model with the task's head, as `from_pretrained` gives it. Called once per run and rank."""

    @abstractmethod
    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The task's model read from a saved folder, dense or compact."""

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The entries of a batch that the model's `forward` takes."""
        return batch

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The task loss, a scalar; by default the one transformers computes when labels are among the inputs."""
        return outputs.loss

    @abstractmethod
    def logits(self, outputs: Any) -> Tensor:
        """One tensor that holds all the model decided, `B` first: what a teacher hands on."""

    @abstractmethod
    def build_metric(self) -> Metric:
        """A fresh metric for one pass over the validation set.

        Its `update(outputs, batch)` takes the model's outputs and the batch, its `compute()` returns name to scalar
        (per cent where the field reports per cent). States reduce across ranks, and examples that a distributed
        sampler repeated count once.
        """

    # -- prediction ----------------------------------------------------------------------------------------------------

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take the examples that `predict_dataloader` then gives, without labels.

        Args:
            records: One dictionary an example, as a line of JSON holds it.
            places: What to call each of them in messages, for example ``line 7 of 'questions.jsonl'``.

        Raises:
            UserError: An example lacks a key or has a value of the wrong type; the message names its place.
        """
        raise UserError(f"{type(self).__name__} does not answer `predict`: it has no `read_inputs`.")

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """What one batch of `predict_dataloader` gives, as tensors or plain values; called without gradients.

        Args:
            model: The model, in evaluation mode.
            batch: A batch, on the model's device.
        """
        raise NotImplementedError

    def predictions(self, batches: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to all examples of `read_inputs`, in their order, ready for JSON.

        Args:
            batches: What `predict_batch` gave for each batch.
        """
        raise NotImplementedError

    def example_inputs(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Inputs of one shape for measuring time and FLOPs: seeded random tokens, all of them attended.

        Args:
            batch_size: Rows of the batch.
            length: Tokens in each row.

        Returns:
            ``input_ids`` and ``attention_mask``, both ``(batch_size, length)``.
        """
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(len(self.tokenizer), (batch_size, length), generator=generator)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
