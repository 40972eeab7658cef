"""Image classification: nothing of pruning is for text only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, Image, load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from bplightning.compaction.loading import load_saved
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.tasks.classification import scores_of
from bplightning.tasks.embedded.images import generate
from bplightning.tasks.shared.class_labels import SINGLE, Labels, labels_of, labels_of_model
from bplightning.tasks.shared.data_settings import data_settings
from bplightning.tasks.shared.example_metric import ExampleMetric
from bplightning.tasks.shared.pretrained import build, read
from bplightning.tasks.shared.table import hub_split, own_columns, read_hub, require_rows

Split = Literal["train", "validation"]
EMBEDDED_MODEL = str(Path(__file__).parent / "embedded" / "image_start")


class ImageClassification(Task):
    """Classification of images, one label each.

    With no argument it uses its embedded data set and model. The validation set serves as the test set too. Images are
    resized and normalized as the model's image processor does it, with no augmentation.

    Args:
        model: Folder or Hugging Face hub name of the pretrained model; empty for the embedded one.
        dataset: Hub name of a data set; its splits "train" and "validation" are used, or "test" where it has no
            "validation". Give this or folders.
        dataset_config: Configuration (subset) of `dataset`, where it has several.
        train_folder: Training images: one subfolder a label. May be left out where nothing is trained.
        validation_folder: Validation images, likewise.
        columns: What the columns "image" and "label" are called in the data, where they have other names.
        batch_size: Images of a training batch, on each device.
        eval_batch_size: Images of a validation batch, on each device.
        num_workers: Processes that read and prepare images, beside the main one; 0 for none.
        cache_dir: Folder for downloads; empty for the one of `datasets`.

    Raises:
        UserError: If the data is given twice or by halves, given without a model, or a number is out of range.
    """

    auto: ClassVar[Any] = AutoModelForImageClassification
    monitor: ClassVar[str] = "accuracy"
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "image_default.yaml"

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        train_folder: str | None = None,
        validation_folder: str | None = None,
        columns: dict[str, str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if dataset and (train_folder or validation_folder):
            raise UserError(
                f"Data given twice: dataset={dataset!r} and folders. Give dataset, or train_folder and "
                "validation_folder."
            )
        if train_folder and not validation_folder:
            raise UserError(
                f"train_folder={train_folder!r} without validation_folder: give one, {self.monitor} is measured on it."
            )
        if (dataset or validation_folder) and not model:
            raise UserError(
                "Data given without a model (the embedded one fits the embedded data only): give model, a folder or "
                "hub name."
            )
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise UserError(f"{name}={value}: it must be at least 1.")
        self.model = model or EMBEDDED_MODEL
        self.dataset = dataset
        self.dataset_config = dataset_config
        self.folders = {"train": train_folder, "validation": validation_folder}
        self.columns = dict(columns or {})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._splits: dict[Split, Dataset] = {}
        self._paths: list[str] = []
        self._ids: list[dict[str, Any]] = []

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def processor(self) -> BaseImageProcessor:
        """The model's image processor."""
        return load_saved(AutoImageProcessor.from_pretrained, self.model, what="the image processor of the model")

    @cached_property
    def labels(self) -> Labels:
        """What can be predicted: the training data says it, or without any the model does."""
        if self.folders["validation"] and not self.folders["train"]:
            return labels_of_model(self._config)
        return labels_of(self._table("train"), self._config, origin="the training images")

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with a head for the labels, in float32; the embedded one is random."""
        new_head = self._config.num_labels != len(self.labels.names)
        seed = 0 if self.model == EMBEDDED_MODEL else None
        return build(self.model, self.auto, seed=seed, new_head=new_head, **self.labels.config())

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in.

        Raises:
            UserError: It is for other labels than the data has.
        """
        model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(folder)
        labels = labels_of_model(model.config)
        if str(folder) != self.model and not self.labels.fit(labels):
            raise UserError(
                f"the model {str(folder)!r} is for the labels {list(labels.names)}, and the data has "
                f"{list(self.labels.names)}: give a model of the same labels in the same order."
            )
        return model

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return read(AutoConfig, self.model)

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Pixels, and labels where there are any."""
        return {name: batch[name] for name in ("pixel_values", "labels") if name in batch}

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The model's logits, ``(B, labels)``."""
        return outputs.logits  # type: ignore[no-any-return]

    def example_inputs(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Seeded random images; they have no length."""
        size = self.processor.size
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(batch_size, 3, size["height"], size["width"], generator=generator)}

    def build_metric(self) -> ExampleMetric:
        """Accuracy, F1 and Matthews' coefficient, in per cent."""
        return ExampleMetric(
            lambda outputs, batch: torch.cat([outputs.logits.float(), batch["labels"][:, None].float()], dim=1),
            lambda rows: scores_of(self.labels, rows),
        )

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.dataset, self.dataset_config, self.folders["validation"])

    # -- data ----------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download what is on the hub."""
        if self.dataset:
            self.setup("fit")

    def setup(self, stage: str) -> None:
        """Open the splits."""
        if stage != "predict":
            self._split("validation")
        if stage == "fit":
            self._split("train")

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training images in random order."""
        return self._loader(self._split("train"), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation images."""
        return self._loader(self._split("validation"), batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation set."""
        return self.val_dataloader()

    def _table(self, split: Split) -> Dataset:
        """The images of a split as they are given, ``image`` and ``label``."""
        if self.dataset:
            name = hub_split(self.dataset, config=self.dataset_config, split=split)
            rows = read_hub(self.dataset, config=self.dataset_config, split=name, cache_dir=self.cache_dir)
            origin = self.dataset
        elif folder := self.folders[split]:
            rows, origin = read_folder(folder, cache_dir=self.cache_dir), folder
        elif self.folders["validation"]:
            raise UserError("There is no training data, only validation_folder was given: give train_folder too.")
        else:
            rows, origin = generate(split), "embedded"
        return own_columns(rows, {"image": False, "label": False}, self.columns, origin=origin)

    def _split(self, split: Split) -> Dataset:
        """The images of a split, labels by name."""
        if split not in self._splits:
            origin = self.dataset or self.folders[split] or "embedded"
            table = self._table(split)
            if self.labels.kind != SINGLE:
                raise UserError(f"{origin!r} does not have one label an image: image-classification needs that.")
            checked = self.labels.check(table, origin=origin)
            self._splits[split] = checked.add_column("index", list(range(len(checked))))
        return self._splits[split]

    def _loader(self, images: Any, *, batch_size: int, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            images,
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = [row["image"].convert("RGB") for row in rows]
        batch = dict(self.processor(images, return_tensors="pt"))
        batch["index"] = torch.tensor([row["index"] for row in rows])
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([self.labels.encode(row["label"]) for row in rows])
        return batch

    # -- prediction ----------------------------------------------------------------------------------------------------

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take records with ``image``, the path of a file; other keys make no difference."""
        if not records:
            raise UserError("The inputs hold no record: give at least one, with 'image'.")
        for place, record in zip(places, records, strict=True):
            path = record.get("image")
            if not isinstance(path, str) or not Path(path).is_file():
                raise UserError(f"{place} must have 'image', the path of a file (from {Path.cwd()}); it has {path!r}.")
        self._paths = [record["image"] for record in records]
        self._ids = [{"id": record["id"]} if "id" in record else {} for record in records]

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The images of `read_inputs`."""
        if not self._paths:
            raise UserError("There is nothing to predict: give examples with `read_inputs` first.")
        columns = {"image": self._paths, "index": list(range(len(self._paths)))}
        images = Dataset.from_dict(columns).cast_column("image", Image())
        return self._loader(images, batch_size=self.eval_batch_size)

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The images' numbers and logits, and the labels of the model."""
        config: Any = model.config
        return {"index": batch["index"], "logits": model(**self.model_inputs(batch)).logits, "names": config.id2label}

    def predictions(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """``label`` and its probability ``score``."""
        index = torch.cat([batch["index"] for batch in batches]).cpu()
        best, label = torch.cat([batch["logits"].float() for batch in batches]).cpu().softmax(dim=-1).max(dim=-1)
        names = batches[0]["names"]
        found = {
            place: {"label": names[number], "score": score}
            for place, number, score in zip(index.tolist(), label.tolist(), best.tolist(), strict=True)
        }
        return [{**given, **found[place]} for place, given in enumerate(self._ids)]


def read_folder(folder: str, *, cache_dir: str | None = None) -> Dataset:
    """Images in one subfolder a label.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise UserError(f"Image folder {folder!r} does not exist (looked in {Path.cwd()}): give a folder.")
    try:
        images = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache_dir, drop_labels=False)
    except Exception as error:
        raise UserError(
            f"Image folder {folder!r} cannot be read ({error}): it must hold one subfolder of images a label."
        ) from error
    return require_rows(images, origin=folder)
