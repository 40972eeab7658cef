"""Image classification: nothing of pruning is for text only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

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

from bplightning.compaction.saved_models import read_part
from bplightning.errors import UserError
from bplightning.tasks.embedded.images import generate
from bplightning.tasks.shared.class_labels import SINGLE, Labels, best_labels, labels_of, labels_of_model
from bplightning.tasks.shared.class_scores import classes_of
from bplightning.tasks.shared.data_task import Data, DataTask, Split, ids_of
from bplightning.tasks.shared.example_metric import ExampleMetric
from bplightning.tasks.shared.image_sizes import fitted_processor, mode_of, sides_of
from bplightning.tasks.shared.label_scores import scores_of
from bplightning.tasks.shared.pretrained import build
from bplightning.tasks.shared.table import require_rows


class ImageClassification(DataTask):
    """Label an image.

    Classification of images, one label each.

    With no argument it uses its embedded data set and model. The validation set serves as the test set too. Images are
    resized, cropped and normalized as the model's image processor does it, to the size that the model takes, with no
    augmentation.

    Args:
        train_folder: Training images: one subfolder a label. May be left out where nothing is trained.
        validation_folder: Validation images, in the same form.
        dataset: Hub name of a data set; its splits "train" and "validation" are used, or "test" where it has no
            "validation". Give this or folders.
        columns: What the columns "image" and "label" are called in the data, where they have other names.
        batch_size: Images of a training batch, on each device.
        eval_batch_size: Images of a validation batch, on each device.
        num_workers: Processes that read and prepare images, in addition to the main one; 0 for none.
        cache_dir: Folder for downloads; empty for the one of `datasets`.

    Raises:
        UserError: The data is given twice or in part, or without a model, or a number is out of range.
    """

    auto: ClassVar[Any] = AutoModelForImageClassification
    monitor: ClassVar[str] = "accuracy"
    kind: ClassVar[str] = "folder"
    embedded_model: ClassVar[Path] = Path(__file__).parent / "embedded" / "image_start"
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "image_default.yaml"
    inputs: ClassVar[Mapping[str, bool]] = {"image": False}
    targets: ClassVar[Mapping[str, bool]] = {"label": False}

    def __init__(
        self,
        model: str | None = None,
        *,
        train_folder: str | None = None,
        validation_folder: str | None = None,
        **data: Unpack[Data],
    ) -> None:
        super().__init__(model, sources={"train": train_folder, "validation": validation_folder}, **data)
        self._given: Dataset | None = None

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def processor(self) -> BaseImageProcessor:
        """The model's image processor, which makes images of the size that the model takes."""
        read = partial(read_part, AutoImageProcessor, self.model, what="the image processor of the model")
        return fitted_processor(read, self._config, name=self.model)

    @cached_property
    def labels(self) -> Labels:
        """What can be predicted: the labels of the training data, or without any those of the model."""
        if "train" not in self.splits:
            return labels_of_model(self._config)
        return labels_of(self.table("train")[0], self._config, origin="the training images")

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with a head for the labels, in float32; the embedded one is random."""
        new_head = self._config.num_labels != len(self.labels.names)
        seed = 0 if self.model == str(self.embedded_model) else None
        return build(self.model, self.auto, seed=seed, new_head=new_head, **self.labels.config())

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in.

        Raises:
            UserError: It is for other labels than the data has.
        """
        model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
        labels = labels_of_model(model.config)
        if str(folder) != self.model and not self.labels.fit(labels):
            raise UserError(
                f"the model {str(folder)!r} is for the labels {list(labels.names)}, and the data has "
                f"{list(self.labels.names)}: give a model of the same labels in the same order."
            )
        return model

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return read_part(AutoConfig, self.model, what="the model")

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Pixels, and labels where there are any."""
        return {name: batch[name] for name in ("pixel_values", "labels") if name in batch}

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The model's logits, ``(B, labels)``."""
        return outputs.logits

    def example_inputs(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Seeded random images; they have no length."""
        sides = sides_of(self.processor, self._config, name=self.model)
        channels = getattr(self._config, "num_channels", 3)
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(batch_size, channels, *sides, generator=generator)}

    def build_metric(self) -> ExampleMetric:
        """Accuracy, F1 and Matthews' coefficient, in per cent."""
        return ExampleMetric(
            lambda outputs, batch: torch.cat([outputs.logits.float(), batch["labels"][:, None].float()], dim=1),
            lambda rows: scores_of(self.labels, rows),
        )

    def evaluation_details(self, metric: Any) -> dict[str, Any]:
        """Intervals, and scores by class."""
        classes = None if metric.counted is None else classes_of(self.labels, metric.counted)
        return {"intervals": metric.intervals(), "classes": classes}

    def sample_records(self, count: int) -> list[dict[str, Any]]:
        """None: a report holds no images."""
        return []

    # -- data ----------------------------------------------------------------------------------------------------------

    def read_source(self, source: str) -> Dataset:
        return read_folder(source, cache_dir=self.cache_dir)

    def read_embedded(self, split: Split) -> Dataset:
        return generate(split)

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """One label an image, by name."""
        if self.labels.kind != SINGLE:
            raise UserError(f"{origin!r} does not have one label an image: image-classification needs that.")
        return self.labels.check(examples, origin=origin)

    def load_features(self, split: Split) -> Dataset:
        """The images, not read yet, their labels and their numbers."""
        examples = self.examples(split)
        return examples.add_column("index", list(range(len(examples))))

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training images in random order."""
        return self.loader(self.features("train"), "train", batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation images."""
        return self.loader(self.features("validation"), "validation", batch_size=self.eval_batch_size)

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Reads images and makes pixels of them."""
        return self._batch

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = [row["image"].convert(mode_of(self._config)) for row in rows]
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
        records, name = [self.wanted.own_record(record) for record in records], self.wanted.names["image"]
        for place, record in zip(places, records, strict=True):
            path = record.get("image")
            if not isinstance(path, str) or not Path(path).is_file():
                raise UserError(f"{place} must have {name!r}, the path of a file (from {Path.cwd()}); it has {path!r}.")
        self._ids = ids_of(records)
        columns = {"image": [record["image"] for record in records], "index": list(range(len(records)))}
        self._given = Dataset.from_dict(columns).cast_column("image", Image())

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The images of `read_inputs`."""
        if self._given is None:
            raise UserError("There is nothing to predict: give examples with `read_inputs` first.")
        return self.loader(self._given, None, batch_size=self.eval_batch_size)

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The images' numbers and logits, and the labels of the model."""
        config: Any = model.config
        return {"index": batch["index"], "logits": model(**self.model_inputs(batch)).logits, "names": config.id2label}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``label`` and its probability ``score``."""
        return best_labels(batch["logits"].float(), batch["names"])


def read_folder(folder: str, *, cache_dir: str | None = None) -> Dataset:
    """Images in one subfolder a label.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    if Path(folder).is_file():
        raise UserError(f"Image folder {folder!r} is a file: give a folder that holds one subfolder of images a label.")
    if not Path(folder).is_dir():
        raise UserError(f"Image folder {folder!r} does not exist (looked in {Path.cwd()}): give a folder.")
    try:
        images = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache_dir, drop_labels=False)
    except Exception as error:
        raise UserError(
            f"Image folder {folder!r} cannot be read ({error}): it must hold one subfolder of images a label."
        ) from error
    return require_rows(images, origin=folder)
