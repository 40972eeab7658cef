"""Classification and regression of a text or a pair of texts, GLUE's tasks among them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from datasets import ClassLabel, Dataset, concatenate_datasets
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedded.classification import generate
from bplightning.tasks.shared.class_labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    Labels,
    ProblemType,
    best_labels,
    labels_of,
    labels_of_model,
)
from bplightning.tasks.shared.class_scores import classes_of
from bplightning.tasks.shared.label_scores import scores_of
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.table import read_hub
from bplightning.tasks.shared.text_task import Columns, Split, TextTask
from bplightning.tasks.shared.tokenized_task import TextData

GLUE_COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
"""GLUE's configurations to what they call text and pair."""


class Classification(TextTask):
    """Label a text or a pair of texts, or give it a number.

    Classification of a text or a pair of texts: one label or several of each, or a number (GLUE's tasks too).

    The labels say which: whole numbers or names are classes, lists of them are several labels of one example, numbers
    with a decimal point a regression; `problem_type` decides where they do not. With `--task.dataset nyu-mll/glue` the
    columns follow from the configuration, and mnli is measured on both of its validation sets. With no argument it
    uses its embedded data set and model.

    Args:
        model: Folder or Hugging Face hub name of the pretrained model; empty for the embedded one. Names that it has
            for the same labels are kept, in their order.
        problem_type: What is to be learned, where it is not to follow from the labels: regression (of whole numbers
            too, such as stars), single_label_classification, or multi_label_classification (of texts too, which then
            name an example's labels with commas between them: a cell of a CSV file holds no list).
        dataset_config: Configuration (subset) of `dataset`, where it has several: sst2, mnli, qqp, ... of GLUE.
        columns: What the columns "text", "text_pair" (which may be missing) and "label" are called in the data, where
            they have other names.
        max_length: Tokens of an example, what is longer is cut. Default: 128, or what the model has positions for
            where that is less.

    Raises:
        UserError: If the data is given twice or by halves, given without a model, a configuration of GLUE is not to be
            learned, or a number is out of range.
    """

    auto: ClassVar[Any] = AutoModelForSequenceClassification
    head: ClassVar[str] = "sequence-classification head"
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "classification_default.yaml"
    inputs: ClassVar[Mapping[str, bool]] = {"text": False, "text_pair": True}
    targets: ClassVar[Mapping[str, bool]] = {"label": False}

    def __init__(
        self, model: str | None = None, *, problem_type: ProblemType | None = None, **data: Unpack[TextData]
    ) -> None:
        super().__init__(model, **data)
        self.problem_type = problem_type
        self.glue = glue_task(self.dataset, self.dataset_config)
        if self.glue is not None:
            self.columns = dict(zip(self.inputs, GLUE_COLUMNS[self.glue], strict=False)) | self.columns
        self._matched: float = float("inf")  # examples of mnli's first validation set; the second one follows

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """GLUE's metric: accuracy, for CoLA Matthews' coefficient, for numbers Pearson's; F1 for several labels."""
        if self.labels.kind == SINGLE:
            return "matthews" if self.glue == "cola" else "accuracy"
        return "pearson" if self.labels.kind == REGRESSION else "f1"

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def labels(self) -> Labels:
        """What can be predicted: the labels of the training data, or without any those of the model."""
        if "train" not in self.splits:
            return labels_of_model(self.pretrained.config)
        table, origin = self.table("train")
        return labels_of(table, self.pretrained.config, origin=origin, problem_type=self.problem_type)

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with a head for the labels, in float32; a head for as many others is trained on."""
        fields = self.labels.config()
        outputs = fields.get("num_labels", len(self.labels.names))
        return self.pretrained.build(**fields, new_head=self.pretrained.config.num_labels != outputs)

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in.

        Raises:
            UserError: It is for other labels than the data has.
        """
        model = super().load_model(folder)
        if (
            str(folder) != self.model or self.dataset or self.sources["validation"]
        ):  # else there is no data but to answer
            self._require_labels(model)
        return model

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A distribution over the labels, ``(B, K)``; of several labels one for each, ``(B, K, 2)``: no and yes."""
        logits: Tensor = outputs.logits
        return torch.stack([torch.zeros_like(logits), logits], dim=-1) if self.labels.kind == MULTI else logits

    def distillation_loss(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """The usual one; for a regression, which has no temperature, the mean squared difference."""
        if self.labels.kind == REGRESSION:
            return mse_loss(student.float(), teacher.float())
        return super().distillation_loss(student, teacher, temperature=temperature)

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """The model's outputs, refused where they stand for other labels than the data has."""
        self._require_labels(model)
        return super().evaluate_batch(model, batch)

    def _require_labels(self, model: Any) -> None:
        found = labels_of_model(model.config)
        if not self.labels.fit(found):
            raise UserError(
                f"the model {model.config._name_or_path!r} is for other labels, or for the same in another order: it "
                f"predicts {found}, and the data has {self.labels}. Give a model fine-tuned on data with these labels."
            )

    # -- data ----------------------------------------------------------------------------------------------------------

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Notes with a judgement, good or bad."""
        return generate(split)

    def read(self, split: Split) -> tuple[Dataset, str]:
        """The data as it is given; of GLUE's mnli both validation sets, one after the other."""
        if self.glue != "mnli" or split == "train":
            return super().read(split)
        assert self.dataset is not None
        matched, mismatched = (
            read_hub(self.dataset, config="mnli", split=f"validation_{name}", cache_dir=self.cache_dir)
            for name in ("matched", "mismatched")
        )
        self._matched = len(matched)
        return concatenate_datasets([matched, mismatched]), f"{self.dataset} (validation)"

    def table(self, split: Split) -> tuple[Dataset, str]:
        """The examples that have a label: SNLI, for example, has some with -1, which stands for none."""
        if split not in self._tables:
            table, origin = super().table(split)
            labelled = [row for row, value in enumerate(table["label"][:]) if value != -1]
            if isinstance(table.features["label"], ClassLabel) and 0 < len(labelled) < len(table):
                rank_zero_info(f"{len(table) - len(labelled)} of {origin}'s {len(table)} examples have no label.")
                self._tables[split] = table.select(labelled), origin
        return self._tables[split]

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Texts, and labels by name that are among those to be learned, none of them twice."""
        checked = self.labels.check(super().check(examples, origin=origin), origin=origin)
        if self.labels.kind == MULTI:
            for row, names in enumerate(checked["label"][:]):
                if len(set(names)) < len(names):
                    raise UserError(
                        f"example {row + 1} of {origin!r} has a label more than once, {names}: list those that apply "
                        "(and not a zero or a one for each that there is)."
                    )
        return checked

    def encode_settings(self) -> dict[str, Any]:
        """The labels too."""
        return super().encode_settings() | {"labels": self.labels.config()}

    def encode(self, examples: Columns) -> Columns:
        """Tokens of the text, or of both, and the label."""
        texts = [examples[name] for name in self.inputs if name in examples]
        encoded = dict(self.tokenizer(*texts, truncation=True, max_length=self.length))
        if "label" in examples:
            encoded["labels"] = [self.labels.encode(value) for value in examples["label"]]
        return encoded

    # -- measuring and prediction --------------------------------------------------------------------------------------

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Whether the example is of mnli's mismatched set, then the logits, then the target."""
        mismatched = (batch["index"] >= self._matched)[:, None]
        targets = batch["labels"] if self.labels.kind == MULTI else batch["labels"][:, None]
        return torch.cat([mismatched.float(), outputs.logits.float(), targets.float()], dim=1)

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """In per cent, but for ``mse``; those of mnli's mismatched set end in ``_mismatched``."""
        matched, others = rows[rows[:, 0] == 0], rows[rows[:, 0] == 1]
        found = scores_of(self.labels, matched[:, 1:]) if len(matched) else {}
        if len(others):
            found |= {f"{name}_mismatched": value for name, value in scores_of(self.labels, others[:, 1:]).items()}
        return found

    def evaluation_details(self, metric: Any) -> dict[str, Any]:
        """The intervals, and scores by class; of mnli those of the matched set."""
        rows = metric.counted
        matched = None if rows is None else rows[rows[:, 0] == 0][:, 1:]
        classes = classes_of(self.labels, matched) if matched is not None and len(matched) else None
        return super().evaluation_details(metric) | {"classes": classes}

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The examples' numbers and logits, and what the model's outputs stand for."""
        config: Any = model.config
        labels = labels_of_model(config)
        return super().predict_batch(model, batch) | {"kind": labels.kind, "names": list(labels.names)}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``label`` and its probability ``score``; ``labels`` and ``scores`` of several; ``value`` of a regression."""
        kind, names, logits = batch["kind"], batch["names"], batch["logits"].float()
        if kind == REGRESSION:
            return [{"value": value} for value in logits[:, 0].tolist()]
        if kind == MULTI:
            return [
                {
                    "labels": [name for name, score in zip(names, row, strict=True) if score > 0.5],
                    "scores": dict(zip(names, row, strict=True)),
                }
                for row in logits.sigmoid().tolist()
            ]
        return best_labels(logits, names)


def glue_task(dataset: str | None, config: str | None) -> str | None:
    """Which of GLUE's tasks a data set is; `None` where it is not GLUE.

    Args:
        dataset: Name on the hub, or a local folder in its layout, called ``glue``.
        config: Configuration of the data set.

    Raises:
        UserError: It is GLUE, and there is no such task, or none to be learned.

    >>> glue_task("nyu-mll/glue", "sst2")
    'sst2'
    """
    if Path(dataset or "").name != "glue":
        return None
    if config == "ax":
        raise UserError("dataset_config is 'ax', which has no training data: train mnli, and use `predict` for ax.")
    if config not in GLUE_COLUMNS:
        raise UserError(
            f"dataset_config is {config!r}, and {dataset!r} has several: give --task.dataset_config one of "
            f"{', '.join(GLUE_COLUMNS)}."
        )
    return config
