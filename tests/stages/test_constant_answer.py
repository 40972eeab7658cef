"""A model that says the same of every example is found, and no other is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import TinyTask
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bplightning.stages.constant_answer import examples_answered_alike


class Labelled(TinyTask):
    """Examples of labels, which are inputs too; the model's answers are what it makes of them."""

    def __init__(self, folder: Path, labels: Tensor) -> None:
        super().__init__(folder, hidden_size=16)
        self.labels = labels

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        return outputs

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader([{"labels": label} for label in self.labels], batch_size=4)  # type: ignore[arg-type]


class Answer(nn.Module):
    def __init__(self, answers: Any) -> None:
        super().__init__()
        self.answers, self.weight = answers, nn.Parameter(torch.zeros(1))

    def forward(self, labels: Tensor) -> Tensor:
        return self.answers(labels)


CLASSES, NUMBERS = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([1.0, 2.0, 5.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("labels", "answers", "expected"),
    [
        (CLASSES, lambda labels: torch.tensor([[0.2, 0.7]]).expand(len(labels), 2), 6),
        (CLASSES, lambda labels: torch.nn.functional.one_hot(labels, 2), None),
        (torch.ones(6, dtype=torch.long), lambda labels: torch.tensor([[0.2, 0.7]]).expand(len(labels), 2), None),
        (NUMBERS, lambda labels: 3 + 0.001 * labels[:, None], 5),
        (NUMBERS, lambda labels: 3 + 0.5 * labels[:, None], None),
    ],
)
def test_a_constant_answer_is_found(tmp_path: Path, labels: Tensor, answers: Any, expected: int | None) -> None:
    assert examples_answered_alike(Labelled(tmp_path, labels), Answer(answers)) == expected


def both(outputs: Any, batch: dict[str, Any]) -> Tensor:
    return torch.stack([outputs.start_logits, outputs.end_logits], 1)


def fails(outputs: Any, batch: dict[str, Any]) -> Tensor:
    raise NotImplementedError("no logits")


def test_of_a_model_that_reads_positions(tmp_path: Path) -> None:
    task = TinyTask(tmp_path, hidden_size=16)
    model = task.build_model().eval()
    task.logits = both  # type: ignore[method-assign]
    assert examples_answered_alike(task, model) is None
    task.logits = fails  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"was not looked at \(NotImplementedError: no logits\)"):
        assert examples_answered_alike(task, model) is None
    task.logits = both  # type: ignore[method-assign]
    with torch.no_grad():  # it looks at nothing but the position
        model.qa_outputs.weight.zero_()
    assert examples_answered_alike(task, model) == 20
