"""The contract suite of tasks: subclass it, name the task, and all tests run on it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from bplightning.contracts.task import Task
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.plugins import TASKS, load, name_of
from bplightning.runs.predicting import predict
from bplightning.stages.samples import COUNT, samples_of
from bplightning.testing.arguments import unexplained

COUNTS = ("batch_size", "eval_batch_size")
"""Arguments that count examples, where a constructor has them."""


@dataclass(frozen=True)
class TaskCase:
    """A task and its test data.

    Attributes:
        cls: The class.
        options: Constructor arguments, by which its data is small.
        records: Three or more different things to answer; none where the task does not answer `predict`.
    """

    cls: type[Task]
    options: Mapping[str, Any]
    records: Sequence[dict[str, Any]]

    def build(self, **more: Any) -> Task:
        """A fresh one.

        Args:
            **more: Constructor arguments in addition to `options`, or in their place.
        """
        return self.cls(**{**self.options, **more})

    def takes(self, argument: str) -> bool:
        """Whether the constructor has this argument."""
        return argument in inspect.signature(self.cls).parameters

    def require_records(self) -> None:
        """Skip a test that needs answers of a task that gives none."""
        if not self.records:
            pytest.skip("the task does not answer `predict`")


def small_case(
    cls: type[Task], cache: Path, *, options: Mapping[str, Any], records: Sequence[dict[str, Any]]
) -> TaskCase:
    """A task with small batches of validation and a folder for what it keeps on disk, where it can be told of them.

    Args:
        cls: The class.
        cache: The folder.
        options: Further constructor arguments.
        records: Things to answer.
    """
    small = {"cache_dir": str(cache), "eval_batch_size": 4}
    taken = inspect.signature(cls).parameters
    return TaskCase(cls, {**{name: value for name, value in small.items() if name in taken}, **options}, records)


class TaskContract:
    """Tests of what `Task` promises, on small data of the task's own: it must give two batches of validation.

    Attributes:
        task: The class.
        options: Constructor arguments to try it with, by which its data is small; an `eval_batch_size` is 4 anyway.
        records: Three or more different things to answer, as lines of JSON hold them; none where the task does not
            answer `predict`.
    """

    task: ClassVar[type[Task]]
    options: ClassVar[Mapping[str, Any]] = {}
    records: ClassVar[Sequence[dict[str, Any]]] = ()

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> TaskCase:
        """The task and its test data, with a separate folder for its files."""
        return small_case(cls.task, tmp_path_factory.mktemp("cache"), options=cls.options, records=cls.records)

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, case: TaskCase) -> Task:
        """One that the tests share."""
        return case.build()

    def test_the_model_learns_from_a_batch(self, made: Task) -> None:
        """The loss is a finite scalar, and its gradient reaches the model, which is in float32."""
        model = made.build_model()
        assert next(model.parameters()).dtype == torch.float32
        batch = next(iter(made.train_dataloader()))
        loss = made.loss(model(**made.model_inputs(batch)), batch)
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        loss.backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())

    def test_a_model_is_the_best_teacher_of_itself(self, made: Task) -> None:
        """Distillation has nothing to say where student and teacher agree, and something where they do not."""
        model = made.build_model().eval()
        (batch,) = batches(made, 1)
        with torch.no_grad():
            own = made.logits(model(**made.model_inputs(batch)), batch)
            rows = {len(value) for value in made.model_inputs(batch).values()}
            assert len(own) in rows or own.ndim > 1  # some leave padding out
            assert made.distillation_loss(own, own, temperature=2.0).item() == pytest.approx(0, abs=1e-5)
            other = own + torch.randn_like(own)
            assert made.distillation_loss(other, own, temperature=2.0) > 0

    def test_what_is_measured_and_that_a_repeated_example_counts_once(self, made: Task) -> None:
        """Metrics are finite scalars, `monitor` among them; ranks repeat examples, which must change nothing."""
        model = made.build_model().eval()
        some = batches(made, 2)

        def measured(*order: dict[str, Any]) -> dict[str, Tensor]:
            metric = made.build_metric()
            with torch.no_grad():
                for batch in order:
                    metric.update(made.evaluate_batch(model, batch), batch)
            return metric.compute()

        found = measured(*some)
        assert made.monitor in found
        assert made.monitor_mode in ("max", "min")
        assert all(value.ndim == 0 and torch.isfinite(value) for value in found.values())
        again = measured(some[1], some[0], some[1])
        assert {key: value.item() for key, value in again.items()} == pytest.approx(
            {key: value.item() for key, value in found.items()}, rel=1e-5, abs=1e-4
        )

    def test_what_a_report_shows_of_it(self, made: Task) -> None:
        """Details of the metrics are JSON, and the examples that a report may show are answered, one answer each."""
        model, metric = made.build_model().eval(), made.build_metric()
        with torch.no_grad():
            for batch in batches(made, 2):
                metric.update(made.evaluate_batch(model, batch), batch)
        metric.compute()
        details = made.evaluation_details(metric)
        json.dumps(details, allow_nan=False)
        assert all(low < high for low, high in details.get("intervals", {}).values())
        shown = samples_of({"compact": (model, made), "dense": (model, made)})
        assert len(shown) == len(made.sample_records(COUNT)) <= COUNT
        assert all(sample["dense"] == sample["compact"] for sample in shown)
        json.dumps(shown, allow_nan=False)

    def test_training_sees_every_example(self, made: Task) -> None:
        """An epoch has all of them, and its batches have what those of validation have."""
        loader = made.train_dataloader()
        count = sum(1 for _ in loader.batch_sampler)
        size = loader.batch_size
        assert size is not None
        assert size * (count - 1) < len(loader.dataset) <= size * count
        batch = next(iter(loader))
        assert made.model_inputs(batch).keys() == made.model_inputs(batches(made, 1)[0]).keys()

    def test_a_saved_model_answers(self, case: TaskCase, made: Task, tmp_path: Path) -> None:
        """`predict` answers from a saved folder, in the order of the records, and hands on an ``id``."""
        case.require_records()
        made.build_model().save_pretrained(tmp_path)
        made.processor.save_pretrained(tmp_path)
        save_task(made, tmp_path)
        given = [record | {"id": number, "remark": "left aside"} for number, record in enumerate(case.records)]
        task = f"{case.cls.__module__}.{case.cls.__qualname__}"  # a task need not be registered
        answers = predict(tmp_path, given, task=task)
        assert [answer["id"] for answer in answers] == [*range(len(given))]
        json.dumps(answers, allow_nan=False)
        backwards = predict(tmp_path, given[::-1], task=task, batch_size=2)
        assert [answer["id"] for answer in backwards] == [*range(len(given))][::-1]
        assert [list(answer) for answer in backwards[::-1]] == [list(answer) for answer in answers]

    def test_what_prediction_needs_is_saved(self, case: TaskCase, made: Task, tmp_path: Path) -> None:
        """Each of `saved_settings` is an argument and an attribute, and can be written as JSON."""
        assert all(case.takes(name) for name in made.saved_settings)
        save_task(made, tmp_path)
        saved = json.loads((tmp_path / "task.json").read_text())["settings"]
        again = case.build(**saved)
        assert all(getattr(again, name) == getattr(made, name) for name in made.saved_settings)

    def test_a_record_that_is_not_right_is_named(self, case: TaskCase) -> None:
        """A record without its keys, or with other types, is refused by the place where it stands."""
        case.require_records()
        task, first = case.build(), case.records[0]
        for wrong in ({}, dict.fromkeys(first, 7), dict.fromkeys(first)):
            with pytest.raises(UserError, match=r"line 2 of 'x\.jsonl'"):
                task.read_inputs([first, wrong], ["line 1 of 'x.jsonl'", "line 2 of 'x.jsonl'"])

    def test_every_argument_is_explained(self, case: TaskCase) -> None:
        """The constructor's docstring is the command line's help, so it has a word on each argument."""
        assert unexplained(case.cls) == []

    def test_values_that_make_no_sense_are_named(self, case: TaskCase) -> None:
        """A batch of no example is refused by the argument's name."""
        for option in COUNTS:
            if case.takes(option):
                with pytest.raises(UserError, match=option):
                    case.build(**{option: 0})

    def test_the_embedded_recipe_is_for_it(self, case: TaskCase) -> None:
        """The settings that `fit` starts from are for this task, and train a baseline to compare with."""
        if case.cls.embedded_recipe is None:
            pytest.skip("the task has no embedded data")
        recipe = yaml.safe_load(case.cls.embedded_recipe.read_text())
        assert load(TASKS, recipe["task"]["class_path"]) is case.cls
        task = case.build(**recipe["task"].get("init_args", {}))
        assert len(task.val_dataloader()) > 0
        assert recipe["baseline"] == "train"  # the report compares with it

    def test_what_is_measured_for_time_fits_the_model(self, made: Task) -> None:
        """`example_inputs` are of the shape asked for, the model takes them, and they are the same each time."""
        with torch.no_grad():
            inputs = made.example_inputs(2, 16)
            made.build_model().eval()(**inputs)
        assert {len(value) for value in inputs.values()} == {2}
        again = made.example_inputs(2, 16)
        assert all(torch.equal(inputs[key], again[key]) for key in inputs)


def batches(task: Task, count: int) -> list[dict[str, Any]]:
    """The first batches of the validation set."""
    loader = task.val_dataloader()
    assert len(loader) >= count, f"{name_of(type(task))} has {len(loader)} batches of validation, and needs {count}"
    return [batch for batch, _ in zip(loader, range(count), strict=False)]
