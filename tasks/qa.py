"""Extractive question answering as SQuAD asks it: the answer is a span of the given passage, in v2 it may be none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering

from bplightning.errors import UserError
from bplightning.tasks.embedded.qa import generate
from bplightning.tasks.shared.data_task import Split, require_at_least
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.tokenized_task import TextSource, TokenizedTask
from bplightning.tasks.squad.answers import Spans, find_spans
from bplightning.tasks.squad.data import normalise, read_file
from bplightning.tasks.squad.features import CHARACTERS, LABELS, tokenize
from bplightning.tasks.squad.metric import SquadMetric
from bplightning.tasks.squad.predict import Inputs


class QuestionAnswering(TokenizedTask):
    """Find the answer to a question in a passage (SQuAD).

    Extractive question answering (SQuAD v1.1 and v2): find the span of a passage that answers a question.

    With no argument it uses its embedded data set and model. The validation set serves as the test set too.

    Args:
        model: Folder or Hugging Face hub name of the pretrained model; empty for the embedded one, which fits the
            embedded data only.
        dataset: Hub name of a data set with SQuAD's columns, for example rajpurkar/squad; its splits "train" and
            "validation" are used. Give this or files.
        train_file: Training examples: SQuAD's nested JSON, flat JSON or JSON lines, or Parquet. May be left out where
            nothing is trained.
        batch_size: Features (windows) of a training batch, on each device.
        eval_batch_size: Features (windows) of a validation batch, on each device.
        max_length: Tokens of a window: question, passage and special tokens. Default: 384, or what the model has
            positions for where that is less.
        stride: Tokens that two windows of one passage share; less than `max_length`.
        max_answer_length: Tokens of the longest answer that is predicted.
        n_best: Best spans that are kept of each window, and of each predicted example to share its probability.
        version_2_with_negative: Whether some questions have no answer, as in SQuAD v2; their examples have none then.
        null_score_diff_threshold: With `version_2_with_negative`: no answer is predicted where its score is ahead of
            the best span's by more than this; in logits, any number.

    Raises:
        UserError: The data is given twice or in part, or without a model, or a number is out of range.
    """

    auto: ClassVar[Any] = AutoModelForQuestionAnswering
    head: ClassVar[str] = "question-answering head"
    label_names: ClassVar[Sequence[str]] = LABELS
    pads_right: ClassVar[bool] = True  # windows' positions are counted from there
    default_length: ClassVar[int] = 384  # of the published SQuAD settings
    monitor: ClassVar[str] = "f1"
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "qa_default.yaml"
    inputs: ClassVar[Mapping[str, bool]] = {"question": False, "context": False}
    targets: ClassVar[Mapping[str, bool]] = {"id": False, "answers": False}
    left_out: ClassVar[Sequence[str]] = ("length", "example_index", *CHARACTERS)
    saved_settings: ClassVar[tuple[str, ...]] = (
        "max_length",
        "stride",
        "max_answer_length",
        "n_best",
        "version_2_with_negative",
        "null_score_diff_threshold",
    )

    def __init__(
        self,
        model: str | None = None,
        *,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        stride: int = 128,
        max_answer_length: int = 30,
        n_best: int = 20,
        version_2_with_negative: bool = False,
        null_score_diff_threshold: float = 0.0,
        **data: Unpack[TextSource],
    ) -> None:
        super().__init__(model, batch_size=batch_size, eval_batch_size=eval_batch_size, **data)
        require_at_least(1, max_answer_length=max_answer_length, n_best=n_best)
        if stride < 0 or (self.max_length is not None and stride >= self.max_length):
            raise UserError(
                f"stride={stride} with max_length={self.max_length}: stride must be at least 0 and below max_length."
            )
        if null_score_diff_threshold and not version_2_with_negative:
            raise UserError(
                f"null_score_diff_threshold={null_score_diff_threshold:g} without version_2_with_negative: every "
                "question has an answer then. Set version_2_with_negative, or leave the threshold out."
            )
        self.stride = stride
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        self.version_2_with_negative = version_2_with_negative
        self.null_score_diff_threshold = null_score_diff_threshold
        self._questions: Inputs | None = None

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Where the answer starts and where it ends, ``(B, 2, L)``; never in padding."""
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
        return logits.masked_fill(batch["attention_mask"][:, None] == 0, -torch.inf)

    def build_metric(self) -> SquadMetric:
        """Exact match and F1 on the validation set, in per cent."""
        return SquadMetric(
            examples=self.examples("validation"),
            features=self.features("validation"),
            **self._span_limits,
            null_score_diff_threshold=self._threshold,
        )

    def evaluation_details(self, metric: Any) -> dict[str, Any]:
        """The intervals of the metrics."""
        return {"intervals": metric.intervals()}

    # -- data ----------------------------------------------------------------------------------------------------------

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Passages of facts, and a question about one of them."""
        return generate(split)

    def read_source(self, source: str) -> Dataset:
        return read_file(source, cache_dir=self.cache_dir)

    def read(self, split: Split) -> tuple[Dataset, str]:
        """The data of a split in SQuAD's columns, and what to call it in messages."""
        rows, origin = super().read(split)
        return normalise(rows, origin=origin), origin

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """What the answers say is checked when they are tokenized."""
        return examples

    def load_features(self, split: Split) -> Dataset:
        """Windows of tokens, with ``feature_index`` and the number of their example."""
        return tokenize(
            self.examples(split),
            tokenizer=self.tokenizer,
            max_length=self.length,
            stride=self.stride,
            may_lack_answers=self.version_2_with_negative,
            cache_dir=self.cache_dir,
            description=f"Tokenizing the {split} set",
        )

    # -- prediction ----------------------------------------------------------------------------------------------------

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take questions to answer: ``question`` and ``context`` each, and maybe ``id``; other keys are ignored."""
        self._questions = Inputs(records, places, tokenizer=self.tokenizer, max_length=self.length, stride=self.stride)
        self._given = self._questions.features.remove_columns(list(LABELS))

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> Spans:
        """The best spans of the batch's features, on their device."""
        return find_spans(model(**self.model_inputs(batch)), batch, **self._span_limits)

    def predictions(self, batches: Sequence[Spans]) -> list[dict[str, Any]]:
        """For each example ``answer``, ``score``, ``start`` and ``end``, as `squad.predict.Inputs.answers` says."""
        assert self._questions is not None
        return self._questions.answers(batches, n_best=self.n_best, null_score_diff_threshold=self._threshold)

    @property
    def _span_limits(self) -> dict[str, int]:
        return {"max_answer_length": self.max_answer_length, "n_best": self.n_best}

    @property
    def _threshold(self) -> float | None:
        return self.null_score_diff_threshold if self.version_2_with_negative else None
