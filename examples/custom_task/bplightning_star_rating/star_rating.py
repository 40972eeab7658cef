"""How many stars a review gives: a task of one's own, learned from the lines of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.text_task import Columns, Split, TextTask

REVIEWS = Path(__file__).parent / "reviews.jsonl"
"""Made-up reviews, one a line, with ``text`` and ``stars``; the last fifth is for validation."""

FEWEST, MOST = 1.0, 5.0
"""Stars."""


class StarRating(TextTask):
    """Stars of a review: a number from 1 to 5 for a text, measured by how far off it is.

    Without data and a model of your own it learns from the reviews that come with it.

    Args:
        columns: What the columns "text" and "stars" are called in the data, where they have other names.
        max_length: Tokens of a review, what is longer is cut. Default: 64, or what the model has positions for where
            that is less.
    """

    monitor: ClassVar[str] = "mean_absolute_error"
    monitor_mode: ClassVar[str] = "min"
    auto: ClassVar[Any] = AutoModelForSequenceClassification
    head: ClassVar[str] = "sequence-classification head"
    default_length: ClassVar[int] = 64
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "star_rating.yaml"
    inputs: ClassVar[Mapping[str, bool]] = {"text": False}
    targets: ClassVar[Mapping[str, bool]] = {"stars": False}

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with one output, in float32."""
        return self.pretrained.build(num_labels=1, problem_type="regression", new_head=True)

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """The lines of the file."""
        rows = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
        first = len(rows) * 4 // 5
        return rows[:first] if split == "train" else rows[first:]

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Texts, and as many stars as there can be."""
        for row, stars in enumerate(examples["stars"][:]):
            if not isinstance(stars, int | float) or not FEWEST <= stars <= MOST:
                raise UserError(
                    f"example {row + 1} of {origin!r} has {stars!r} stars; it must be a number from {FEWEST:g} to "
                    f"{MOST:g}: mend it, or take the example out."
                )
        return super().check(examples, origin=origin)

    def encode(self, examples: Columns) -> Columns:
        """Tokens of the text, and the stars where there are any."""
        encoded = dict(self.tokenizer(examples["text"], truncation=True, max_length=self.length))
        if "stars" in examples:
            encoded["labels"] = [float(stars) for stars in examples["stars"]]
        return encoded

    def distillation_loss(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """How far stars are from the teacher's, squared: a number has no temperature."""
        return mse_loss(student.float(), teacher.float())

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Stars as predicted, and as given."""
        return torch.stack([outputs.logits[:, 0].float(), batch["labels"].float()], dim=1)

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """Mean distance in stars, and per cent that are off by half a star at most."""
        distance = (rows[:, 0] - rows[:, 1]).abs()
        return {"mean_absolute_error": distance.mean(), "within_half_a_star": 100 * (distance <= 0.5).double().mean()}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``stars``, no fewer and no more than there can be."""
        return [{"stars": stars} for stars in batch["logits"][:, 0].float().clamp(FEWEST, MOST).tolist()]
