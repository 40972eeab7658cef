"""The task contract: what a network is pruned for.

A task is a `LightningDataModule` that also knows its model, its loss and its metrics. It knows nothing of pruning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin

from bplightning.contracts.soft_labels import soft_label_loss
from bplightning.errors import UserError


class Task(LightningDataModule, ABC):
    """What a network is pruned for: model class, data, loss, logits, metrics.

    Lightning's own data hooks (`prepare_data`, `setup`, `train_dataloader`, `val_dataloader`, `test_dataloader`,
    `predict_dataloader`) are part of the contract: `prepare_data` does slow work once (download, tokenize, cache on
    disk), `setup` loads its result.

    `predict` builds a task for a saved model by giving the folder as the constructor's argument `model`, beside the
    `saved_settings`; its ``--batch_size`` sets the attribute `eval_batch_size`, where the task has one.

    Attributes:
        auto: The Auto class that reads the task's models, such as `AutoModelForQuestionAnswering`, where there is one.
        monitor: The metric that says which model is best, a key of what `build_metric().compute()` returns.
        monitor_mode: ``"max"`` or ``"min"``.
        embedded_recipe: YAML with the settings that suit the task's embedded data set; `fit` starts from it when the
            user names no model and no data of their own. `None` where the task has none.
        saved_settings: Constructor arguments, each an attribute too, that prediction needs (lengths, thresholds); their
            values are written beside a compact model, and read from there by `predict`.
    """

    auto: ClassVar[Any] = None
    monitor: ClassVar[str]
    monitor_mode: ClassVar[str] = "max"
    embedded_recipe: ClassVar[Path | None] = None
    saved_settings: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def supports(cls, config: PreTrainedConfig) -> bool:
        """Whether a model of this configuration can have the task's head; by default what transformers has one for."""
        return cls.auto is None or type(config) in cls.auto._model_mapping

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer; `None` for a task without text."""
        return None

    @property
    def processor(self) -> PushToHubMixin:
        """What makes the model's inputs of raw data, saved beside the model: by default the tokenizer."""
        assert self.tokenizer is not None, "a task without text has a processor of its own"
        return self.tokenizer

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """A fresh model with the task's head, as `from_pretrained` gives it. Called once per run and rank."""

    @abstractmethod
    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The task's model read from a saved folder, dense or compact, with all its weights from there."""

    def write_files(self, folder: Path) -> None:
        """Write what other programs that read a saved model need next to it; by default nothing.

        Args:
            folder: The model's folder, which holds model and processor.
        """

    @property
    def needs_teacher(self) -> bool:
        """Whether there is nothing to learn from the data without a teacher, as from texts without labels."""
        return False

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The entries of a batch that the model's `forward` takes."""
        return batch

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The task loss, a scalar; by default the one transformers computes when labels are among the inputs."""
        return outputs.loss

    def calibration_loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """What strategies that prune by data measure with, a scalar, the mean over the rows; by default `loss`.

        Args:
            outputs: The model's.
            batch: The model's inputs, and nothing else.
        """
        return self.loss(outputs, batch)

    @abstractmethod
    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """What the model decided, for a teacher to hand on: distributions along the last axis, ``(..., K)``.

        Args:
            outputs: The model's, for example of a teacher.
            batch: The batch they are of: what is padding is minus infinity all along the axis.
        """

    def distillation_loss(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """How far a model's decisions are from its teacher's, a scalar; by default by `soft_label_loss`.

        Args:
            student: What `logits` gave for the model.
            teacher: What it gave for the teacher.
            temperature: Both are divided by it before they are compared.
        """
        both = min(student.shape[-1], teacher.shape[-1])  # vocabularies may be padded to different sizes
        return soft_label_loss(student=student[..., :both], teacher=teacher[..., :both], temperature=temperature)

    def teacher_logits(self, teacher: nn.Module, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """What a teacher decided; by default as `logits` has it. One that `load_model` read may need other steps.

        Args:
            teacher: The teacher.
            outputs: Its outputs.
            batch: The batch they are of, or only the model's inputs.
        """
        return self.logits(outputs, batch)

    @abstractmethod
    def build_metric(self) -> Metric:
        """A fresh metric for one pass over the validation set.

        Its `update(outputs, batch)` takes what `evaluate_batch` gave and the batch, its `compute()` returns name to
        scalar (per cent where the field reports per cent). States reduce across ranks, and examples that a distributed
        sampler repeated count once.
        """

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """What the metric is given of a validation batch; by default the model's outputs. A task may generate instead.

        Args:
            model: The model, in evaluation mode.
            batch: A batch, on the model's device.
        """
        return model(**self.model_inputs(batch))

    def evaluation_settings(self, metric: Metric) -> dict[str, Any]:
        """What the metrics depend on beside the model, for the report, as JSON; by default nothing is said.

        Args:
            metric: The one that `build_metric` gave, after a pass over the validation set.
        """
        return {}

    def evaluation_details(self, metric: Metric) -> dict[str, Any]:
        """More about the metrics, for the report, as JSON; by default nothing.

        Args:
            metric: The one that `build_metric` gave, after a pass over the validation set.

        Returns:
            ``intervals``, metric name to the two ends of its 95 % confidence interval; ``classes``, scores by class as
            the report has them. What is not known is left out.
        """
        return {}

    def sample_records(self, count: int) -> list[dict[str, Any]]:
        """Examples of the validation set that a report may show, as `read_inputs` takes them; by default none.

        Args:
            count: How many, if there are as many.
        """
        return []

    def data_settings(self) -> dict[str, Any]:
        """What the metrics are measured on, for report and model card, as JSON; by default nothing is said.

        Returns:
            ``dataset`` and ``dataset_config``, a name on the hub and its configuration, `None` for other data;
            ``validation``, what the validation set is called; ``validation_hash``, a hash of its file, `None` without.
        """
        return {}

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

    # -- measuring time ------------------------------------------------------------------------------------------------

    def example_generation(self, tokens: int) -> Callable[[nn.Module, Mapping[str, Tensor]], Any] | None:
        """How a model generates from `example_inputs`, for measuring time; by default `None`, nothing is generated.

        Args:
            tokens: New tokens in each row, no fewer and no more.
        """
        return None

    def example_inputs(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Inputs of one shape for measuring time and FLOPs: seeded random tokens, all attended, each row with its end.

        Args:
            batch_size: Rows of the batch.
            length: Tokens in each row.

        Returns:
            ``input_ids`` and ``attention_mask``, both ``(batch_size, length)``.
        """
        generator = torch.Generator().manual_seed(0)
        assert self.tokenizer is not None, "a task without text has example inputs of its own"
        input_ids = torch.randint(len(self.tokenizer), (batch_size, length), generator=generator)
        end = getattr(self.tokenizer, "eos_token_id", None)
        if end is not None:  # BART and T5 classify by it, and want as many in each row
            input_ids[input_ids == end] = (end + 1) % len(self.tokenizer)
            input_ids[:, -1] = end
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
