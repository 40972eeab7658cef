"""A few examples of the validation set with the models' answers, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel

from bplightning.contracts.task import Task
from bplightning.reporting.schema import Sample

COUNT = 5
"""Examples in a report."""

CHARACTERS, ITEMS = 400, 60
"""Most characters of a text, and most items of a list: of longer ones the beginning is kept."""


def samples_of(models: Mapping[str, tuple[PreTrainedModel, Task]]) -> list[Sample]:
    """Examples with the answers to them; none where the task has none to show, or does not answer `predict`.

    Args:
        models: ``compact``, and ``dense`` where there is one, to the model and the task that reads its inputs.
    """
    _, task = models["compact"]
    try:
        records = task.sample_records(COUNT)
        answers = {name: _answers(model, of, records) for name, (model, of) in models.items()} if records else {}
    except Exception as error:  # any error: the run took hours, and these are only for looking at
        rank_zero_warn(f"The report has no sample predictions ({type(error).__name__}: {error}).")
        return []
    return [
        Sample(
            example=shortened(record),
            dense=shortened(answers["dense"][place]) if "dense" in answers else None,
            compact=shortened(answers["compact"][place]),
        )
        for place, record in enumerate(records)
    ]


@torch.inference_mode()
def _answers(model: PreTrainedModel, task: Task, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    task.read_inputs(records, [f"example {place}" for place, _ in enumerate(records)])
    batches = task.predict_dataloader()
    return task.predictions([task.predict_batch(model.eval(), move_data_to_device(of, model.device)) for of in batches])


def shortened(value: Any) -> Any:
    """A value for JSON with long texts and lists cut, and numbers rounded.

    >>> shortened({"scores": [0.123456], "text": "x" * 500})["scores"]
    [0.1235]
    """
    if isinstance(value, Mapping):
        return {str(key): shortened(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(each) for each in value[:ITEMS]] + (["..."] if len(value) > ITEMS else [])
    if isinstance(value, float):
        return round(value, 4) if abs(value) < 1e9 else None
    if value is None or isinstance(value, (bool, int)):
        return value
    text = str(value)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}..."
