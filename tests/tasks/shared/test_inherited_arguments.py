"""Arguments that a task passes on to its base are arguments of the command line like its own."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from bplightning.contracts.task_file import TASK_FILE, load_task
from bplightning.errors import UserError
from bplightning.tasks.classification import Classification
from bplightning.tasks.image_classification import ImageClassification
from bplightning.tasks.qa import QuestionAnswering
from bplightning.tasks.summarization import Summarization

DATA = {"model", "dataset", "dataset_config", "batch_size", "eval_batch_size", "num_workers", "cache_dir"}
TEXT = DATA | {"train_file", "validation_file", "max_length"}
ARGUMENTS = {
    Classification: TEXT | {"columns", "problem_type"},
    ImageClassification: DATA | {"columns", "train_folder", "validation_folder"},
    QuestionAnswering: TEXT
    | {"stride", "max_answer_length", "n_best", "version_2_with_negative", "null_score_diff_threshold"},
    Summarization: TEXT | {"columns", "prefix", "max_summary_length", "generation", "eval_examples"},
}


@pytest.mark.parametrize("cls", ARGUMENTS)
def test_the_command_line_takes_them_flat_with_the_defaults_of_the_base(cls: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "task")
    parsed = parser.parse_args(["--task.cache_dir=here", "--task.num_workers", "3"])
    assert set(vars(parsed.task)) == ARGUMENTS[cls]
    dumped = yaml.safe_load(parser.dump(parsed))["task"]
    smaller = cls in (QuestionAnswering, Summarization)
    assert (dumped["batch_size"], dumped["eval_batch_size"]) == ((16, 32) if smaller else (32, 64))
    assert (dumped["cache_dir"], dumped["num_workers"], parsed.task.dataset) == ("here", 3, None)
    assert parser.parse_object({"task": dumped}) == parsed


@pytest.mark.parametrize("cls", ARGUMENTS)
def test_signature_and_types_name_them(cls: type) -> None:
    parameters = inspect.signature(cls).parameters
    assert set(parameters) == ARGUMENTS[cls]
    assert parameters["cache_dir"].default is None
    assert typing.get_type_hints(cls.__init__)["dataset"] == str | None  # type: ignore[misc]


def test_what_no_base_takes_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'train_fil'"):
        Classification(model="m", train_fil="x")  # type: ignore[call-arg]


def test_a_saved_setting_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    saved = {"version": 1, "task": "classification", "settings": {"max_length": "long"}}
    (tmp_path / TASK_FILE).write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"has setting max_length 'long', and task .* takes NoneType or int"):
        load_task(tmp_path)
