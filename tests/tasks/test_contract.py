"""Every registered task keeps its promises: the suite that `bplightning.testing` has for anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bplightning.contracts.task import Task
from bplightning.contracts.task_file import load_task, save_task
from bplightning.errors import UserError
from bplightning.plugins import TASKS, available, load
from bplightning.testing import TaskCase, TaskContract, small_case

NAMES = list(available(TASKS))
SENTENCES = ("Kelholm lies on the Porarno.", "Who would visit Marbridge today, in the winter of the year 1950?", "Red.")
OF_TOKENS = [name for name in NAMES if "language" in name or name in ("summarization", "token-classification")]


def records(name: str, folder: Path) -> list[dict[str, Any]]:
    """Three things to answer."""
    if name == "qa":
        return [{"context": sentence, "question": "What is it?"} for sentence in SENTENCES]
    if name == "image-classification":
        for number in range(3):
            Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(folder / f"{number}.png")
        return [{"image": str(folder / f"{number}.png")} for number in range(3)]
    if name == "token-classification":
        return [{"tokens": sentence.split()} for sentence in SENTENCES]
    if name == "reranking":
        return [{"text": "Where does Kelholm lie?", "text_pair": sentence} for sentence in SENTENCES]
    mask = " [MASK]." if name == "masked-language-modeling" else ""
    return [{"text": sentence + mask} for sentence in SENTENCES]


class TestEveryTask(TaskContract):
    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def name(cls, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, name: str, tmp_path_factory: pytest.TempPathFactory) -> TaskCase:
        folder = tmp_path_factory.mktemp("contract")
        return small_case(load(TASKS, name), folder / "cache", options={}, records=records(name, folder))

    def test_a_saved_model_says_its_task(self, made: Task, tmp_path: Path) -> None:
        made.build_model().save_pretrained(tmp_path)
        made.processor.save_pretrained(tmp_path)
        save_task(made, tmp_path)
        assert type(load_task(tmp_path)) is type(made)

    def test_data_without_a_model_is_refused(self, case: TaskCase) -> None:
        with pytest.raises(UserError, match="Data given without a model"):
            case.build(dataset="some/data")

    def test_a_teacher_has_no_say_in_padding(self, name: str, made: Task) -> None:
        if name not in OF_TOKENS:
            pytest.skip("its decisions are not of tokens")
        model = made.build_model().eval()
        batch = next(iter(made.val_dataloader()))
        labels = batch["labels"]
        labels[:2, -3:] = -100  # padding, whatever the batch
        with torch.no_grad():
            outputs = model(**made.model_inputs(batch))
        before = made.logits(outputs, batch).clone()
        places = (labels != -100).roll(-1, dims=1) if name == "language-modeling" else labels != -100
        if name == "language-modeling":
            places[:, -1] = False  # nothing comes after the last
        outputs.logits[~places] += 5.0
        assert torch.equal(made.logits(outputs, batch), before)
        outputs.logits[places] += torch.randn(outputs.logits.shape[-1])
        assert not torch.equal(made.logits(outputs, batch), before)
