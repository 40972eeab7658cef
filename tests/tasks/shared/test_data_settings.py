"""What a report says of the data: the same for the same validation set, whatever it is called on a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bplightning.tasks.classification import Classification
from bplightning.tasks.image_classification import ImageClassification
from bplightning.tasks.qa import QuestionAnswering
from bplightning.tasks.shared.data_settings import data_settings


def test_files_of_the_same_name_are_told_apart_and_folders_are_not_told(tmp_path: Path) -> None:
    found = []
    for folder, content in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dev.json").write_text(content)
        found.append(data_settings(None, None, str(tmp_path / folder / "dev.json")))
    assert found[0] == found[2] != found[1]
    assert found[0]["validation"] == "dev.json"
    assert str(tmp_path) not in str(found)


def test_a_name_of_the_hub_is_told_and_a_local_folder_s_is_not_one(tmp_path: Path) -> None:
    hub = data_settings("nyu-mll/glue", "sst2", None)
    assert (hub["dataset"], hub["dataset_config"], hub["validation"]) == ("nyu-mll/glue", "sst2", "nyu-mll/glue")
    local = data_settings(str(tmp_path), None, None)
    assert (local["dataset"], local["validation"]) == (None, tmp_path.name)


@pytest.mark.parametrize("task", [Classification, ImageClassification, QuestionAnswering])
def test_tasks_tell_of_their_embedded_data(task: type) -> None:
    assert task().data_settings() == {
        **{"dataset": None, "dataset_config": None},
        **{"validation": "embedded", "validation_hash": None},
    }
