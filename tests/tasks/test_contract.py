"""One suite over every registered task, on its embedded data and model: what `Task` promises."""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

import bplightning
from bplightning.errors import UserError
from bplightning.plugins import TASKS, available, load
from bplightning.task import Task
from bplightning.task_file import load_task, save_task

NAMES = list(available(TASKS))
SENTENCES = ("Kelholm lies on the Porarno.", "Who would visit Marbridge today, in the winter of the year 1950?", "Red.")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tokenized data goes, and pictures lie."""
    place = tmp_path_factory.mktemp("contract")
    FOLDER.append(place)
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(place / f"{number}.png")
    return place


FOLDER: list[Path] = []


@cache
def made(name: str) -> Task:
    """The task with nothing said but to be small, shared by the tests."""
    return build(name)


def build(name: str, **options: Any) -> Task:
    cls = load(TASKS, name)
    small = {"cache_dir": str(FOLDER[-1] / "cache"), "eval_batch_size": 4}
    taken = inspect.signature(cls).parameters
    return cls(**{key: value for key, value in small.items() if key in taken} | options)  # type: ignore[no-any-return]


def records(name: str) -> list[dict[str, Any]]:
    """Three things to answer."""
    if name == "qa":
        return [{"context": sentence, "question": "What is it?"} for sentence in SENTENCES]
    if name == "image-classification":
        return [{"image": str(FOLDER[-1] / f"{number}.png")} for number in range(3)]
    if name == "token-classification":
        return [{"tokens": sentence.split()} for sentence in SENTENCES]
    mask = " [MASK]." if name == "masked-language-modeling" else ""
    return [{"text": sentence + mask} for sentence in SENTENCES]


def batches(task: Task, count: int) -> list[dict[str, Any]]:
    loader = iter(task.val_dataloader())
    return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_learns_from_a_batch(name: str) -> None:
    task = made(name)
    model = task.build_model()
    assert next(model.parameters()).dtype == torch.float32
    (batch,) = batches(task, 1)
    outputs = model(**task.model_inputs(batch))
    loss = task.loss(outputs, batch)
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_the_best_teacher_of_itself(name: str) -> None:
    task = made(name)
    model = task.build_model().eval()
    (batch,) = batches(task, 1)
    with torch.no_grad():
        own = task.logits(model(**task.model_inputs(batch)), batch)
        rows = {len(value) for value in task.model_inputs(batch).values()}
        assert len(own) in rows or own.ndim > 1  # some leave padding out
        assert task.distillation_loss(own, own, temperature=2.0).item() == pytest.approx(0, abs=1e-5)
        other = own + torch.randn_like(own)
        assert task.distillation_loss(other, own, temperature=2.0) > 0


OF_TOKENS = [name for name in NAMES if "language" in name or name in ("summarization", "token-classification")]


@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_teacher_has_no_say_in_padding(name: str) -> None:
    task = made(name)
    model = task.build_model().eval()
    (batch,) = batches(task, 1)
    labels = batch["labels"]
    labels[:2, -3:] = -100  # padding, whatever the batch
    with torch.no_grad():
        outputs = model(**task.model_inputs(batch))
    before = task.logits(outputs, batch).clone()
    places = (labels != -100).roll(-1, dims=1) if name == "language-modeling" else labels != -100
    if name == "language-modeling":
        places[:, -1] = False  # nothing comes after the last
    outputs.logits[~places] += 5.0
    assert torch.equal(task.logits(outputs, batch), before)
    outputs.logits[places] += torch.randn(outputs.logits.shape[-1])
    assert not torch.equal(task.logits(outputs, batch), before)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_and_that_a_repeated_example_counts_once(name: str) -> None:
    task = made(name)
    model = task.build_model().eval()
    some = batches(task, 2)

    def measured(*order: dict[str, Any]) -> dict[str, Tensor]:
        metric = task.build_metric()
        with torch.no_grad():
            for batch in order:
                metric.update(task.evaluate_batch(model, batch), batch)
        return metric.compute()

    found = measured(*some)
    assert task.monitor in found
    assert task.monitor_mode in ("max", "min")
    assert all(value.ndim == 0 and torch.isfinite(value) for value in found.values())
    again = measured(some[1], some[0], some[1])
    assert {key: value.item() for key, value in again.items()} == pytest.approx(
        {key: value.item() for key, value in found.items()}, rel=1e-5, abs=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
def test_training_sees_every_example(name: str) -> None:
    task = made(name)
    loader = task.train_dataloader()
    count = sum(1 for _ in loader.batch_sampler)  # type: ignore[union-attr]
    size = loader.batch_size
    assert size is not None
    assert size * (count - 1) < len(loader.dataset) <= size * count  # type: ignore[arg-type]
    batch = next(iter(loader))
    assert task.model_inputs(batch).keys() == task.model_inputs(batches(task, 1)[0]).keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_answers(name: str, folder: Path) -> None:
    task = made(name)
    saved = folder / f"saved-{name}"
    task.build_model().save_pretrained(saved)
    task.processor.save_pretrained(saved)
    save_task(task, saved)
    again = load_task(saved)
    assert type(again) is type(task)
    assert all(getattr(again, setting) == getattr(task, setting) for setting in task.saved_settings)
    given = [record | {"id": number, "remark": "left aside"} for number, record in enumerate(records(name))]
    answers = bplightning.predict(saved, given)
    assert [answer["id"] for answer in answers] == [0, 1, 2]
    json.dumps(answers, allow_nan=False)
    backwards = bplightning.predict(saved, given[::-1], batch_size=2)
    assert [list(answer) for answer in backwards[::-1]] == [list(answer) for answer in answers]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_that_is_not_right_is_named(name: str) -> None:
    task = build(name)
    first = records(name)[0]
    for wrong in ({}, dict.fromkeys(first, 7), dict.fromkeys(first)):
        with pytest.raises(UserError, match=r"line 2 of 'x\.jsonl'"):
            task.read_inputs([first, wrong], ["line 1 of 'x.jsonl'", "line 2 of 'x.jsonl'"])


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_explained(name: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(load(TASKS, name), "task")
    options = {action.dest.removeprefix("task."): action.help for action in parser._actions if "." in action.dest}
    assert set(options) >= set(inspect.signature(load(TASKS, name)).parameters)
    assert [option for option, text in options.items() if not text] == []


@pytest.mark.parametrize("name", NAMES)
def test_values_that_make_no_sense_are_named(name: str) -> None:
    taken = inspect.signature(load(TASKS, name)).parameters
    for option in ("batch_size", "eval_batch_size"):
        if option in taken:
            with pytest.raises(UserError, match=f"{option}=0: it must be at least 1"):
                build(name, **{option: 0})
    with pytest.raises(UserError, match="Data given without a model"):
        build(name, dataset="some/data")


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_recipe_is_for_it(name: str) -> None:
    cls = load(TASKS, name)
    if cls.embedded_recipe is None:
        pytest.skip("the task has no embedded data")
    recipe = yaml.safe_load(cls.embedded_recipe.read_text())
    assert recipe["task"]["class_path"] == name
    task = build(name, **recipe["task"].get("init_args", {}))
    assert len(task.val_dataloader()) > 0
    assert recipe["baseline"] == "train"  # the report compares with it


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_for_time_fits_the_model(name: str) -> None:
    task = made(name)
    with torch.no_grad():
        inputs = task.example_inputs(2, 16)
        task.build_model().eval()(**inputs)
    assert {len(value) for value in inputs.values()} == {2}
    again = task.example_inputs(2, 16)
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
