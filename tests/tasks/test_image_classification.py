"""Images: made up, from folders, from fit to predict; and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bplightning import compact, predict, save_compact
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.tasks.embedded.images import SHAPES, generate
from bplightning.tasks.image_classification import ImageClassification

MODEL = str(Path(__file__).parents[2] / "tasks" / "embedded" / "image_start")


def save_images(folder: Path, count: int, *, labels: tuple[str, ...] = ("dark", "light")) -> Path:
    """Images of noise, dark ones and light ones, a subfolder each."""
    noise = np.random.default_rng(0)
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = noise.integers(0, 100, (20, 24, 3)) + 150 * number
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / label / f"{index}.png")
    return folder


def make(tmp_path: Path, **options: Any) -> ImageClassification:
    folders = {"train_folder": str(tmp_path / "train"), "validation_folder": str(tmp_path / "validation")}
    return ImageClassification(**({"model": MODEL, "cache_dir": str(tmp_path / "cache")} | folders | options))


@pytest.fixture
def task(tmp_path: Path) -> ImageClassification:
    save_images(tmp_path / "train", 6)
    save_images(tmp_path / "validation", 3)
    return make(tmp_path, batch_size=4, eval_batch_size=4)


def test_generated_images_are_the_same_everywhere_and_balanced() -> None:
    rows, again = generate("train", size=200), generate("train", size=200)
    assert rows["label"][:] == again["label"][:]
    assert all(np.array_equal(np.asarray(rows[i]["image"]), np.asarray(again[i]["image"])) for i in (0, 7, 199))
    other = generate("validation", size=200)
    assert rows["label"][:] != other["label"][:]
    assert {rows["label"][:].count(number) > 30 for number in range(len(SHAPES))} == {True}
    with pytest.raises(ValueError, match="split is 'test'"):
        generate("test")


def test_folders_become_batches_with_labels_by_name(task: ImageClassification) -> None:
    batch = next(iter(task.val_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert task.labels.names == ("dark", "light")
    means = batch["pixel_values"].mean((1, 2, 3))
    assert ((means > 0) == (batch["labels"] == 1)).all()
    model = task.build_model()
    assert model.config.id2label == {0: "dark", 1: "light"}
    outputs = model(**task.model_inputs(batch))
    assert torch.isfinite(task.loss(outputs, batch))
    assert task.logits(outputs, batch).shape == (4, 2)


def test_a_processor_of_another_size_makes_what_the_model_takes(task: ImageClassification, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    task.build_model().save_pretrained(folder)
    says = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"} | says))
    other = make(tmp_path, model=str(folder), eval_batch_size=4)
    model, batch = other.build_model().eval(), next(iter(other.val_dataloader()))
    for inputs in (other.model_inputs(batch), other.example_inputs(4, 1)):
        assert inputs["pixel_values"].shape == (4, 3, 32, 32)
        assert model(**inputs).logits.shape == (4, 2)


def test_an_image_seen_twice_counts_once(task: ImageClassification) -> None:
    model = task.build_model().eval()
    metric = task.build_metric()
    batches = list(task.val_dataloader())
    right, seen = 0, 0
    for batch in [*batches, batches[0]]:
        with torch.no_grad():
            metric.update(task.evaluate_batch(model, batch), batch)
    for batch in batches:
        with torch.no_grad():
            right += int((model(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum())
        seen += len(batch["labels"])
    assert float(metric.compute()["accuracy"]) == pytest.approx(100 * right / seen)


def test_a_compact_model_answers_from_files(task: ImageClassification, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = task.build_model().eval()
    with torch.no_grad():
        PrunableLayout.of(model).attention[0].value.weight(model)[:32] = 0
    smaller = compact(model)
    raw = task.predict_batch(model, {"index": torch.tensor([0]), "pixel_values": torch.zeros(1, 3, 32, 32)})
    assert raw["names"] == {0: "dark", 1: "light"}  # the model's own, though the task was made for another
    folder = tmp_path / "compact"
    save_compact(smaller, folder, task.processor, complete=lambda where: save_task(task, where))  # type: ignore[arg-type]
    paths = [str(tmp_path / "validation" / label / "0.png") for label in ("light", "dark")]
    answers = predict(folder, [{"image": path, "id": number} for number, path in enumerate(paths)])
    assert [answer["id"] for answer in answers] == [0, 1]
    for path, answer in zip(paths, answers, strict=True):
        pixels = task.processor([Image.open(path).convert("RGB")], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            probabilities = model(pixels).logits.softmax(-1)[0]
        assert answer["label"] == ("dark", "light")[int(probabilities.argmax())]
        assert answer["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    with pytest.raises(UserError, match=r"record 0 must have 'image', the path of a file .*; it has 'none.png'"):
        predict(folder, [{"image": "none.png"}])


def test_a_model_of_other_labels_is_refused(task: ImageClassification, tmp_path: Path) -> None:
    model = task.build_model()
    model.config.id2label = {0: "light", 1: "dark"}
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"is for the labels \['light', 'dark'\], and the data has \['dark', 'light'\]"):
        task.load_model(tmp_path / "other")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        save_images(tmp_path / split, 2)
    task = make(tmp_path, columns={"image": "img"})
    with pytest.raises(UserError, match=r"lacks the columns \['img'\]; it has \['image', 'label'\]"):
        task.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "a/b"}, "Data given twice: dataset='a/b' and folders"),
        ({"validation_folder": None}, "without validation_folder: give one, the model is measured on it"),
        ({"model": None}, "Data given without a model"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"model": MODEL, "train_folder": "t", "validation_folder": "v"}
    with pytest.raises(UserError, match=message):
        ImageClassification(**(given | options))


def test_data_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Image folder '.*train' does not exist"):
        make(tmp_path).setup("fit")
    save_images(tmp_path / "train", 2)
    save_images(tmp_path / "validation", 1, labels=("dark", "medium"))
    with pytest.raises(UserError, match=r"example 2 of '.*validation' has the label 'medium', which"):
        make(tmp_path).setup("fit")
    with pytest.raises(UserError, match=r"Image folder '.*0\.png' is a file: give a folder"):
        make(tmp_path, train_folder=str(tmp_path / "train" / "dark" / "0.png")).setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"Image folder '.*empty' cannot be read"):
        make(tmp_path, train_folder=str(tmp_path / "empty")).setup("fit")
    only = make(tmp_path, train_folder=None)
    with pytest.raises(UserError, match="only validation_folder was given: give train_folder too"):
        only.train_dataloader()
