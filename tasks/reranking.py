"""Reranking: a score of how well each passage answers a query, by a cross-encoder that reads both together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedded.search import generate_candidates
from bplightning.tasks.embedding.examples import require_text, require_written, say_cut, with_numbers
from bplightning.tasks.embedding.folder import IDENTITY, SIGMOID, read_activation
from bplightning.tasks.embedding.rankings import intervals, means, ranking_scores
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.text_task import Columns, Split, TextTask
from bplightning.tasks.shared.tokenized_task import TextData


class Reranking(TextTask):
    """Score passages by a query.

    Rerankers: a cross-encoder reads a query and a passage together, and gives one score.

    Labels from 0 (no answer) to 1 (an answer) are learned by cross-entropy; scores are then probabilities, or logits
    where the given cross-encoder's are. Where a label is outside of that, as a teacher's scores are, all are learned by
    squared error, and scores are of their kind.
    Validation groups passages by their query and measures the ranking; queries without a relevant passage (a label
    above 0) are left out. With no argument it uses its embedded data set and model.

    Args:
        model: Folder or Hugging Face hub name of a cross-encoder, or of an encoder that is to become one; empty for the
            embedded one.
        columns: What the columns "text" (the query), "text_pair" (the passage) and "label" are called in the data,
            where they have other names.
        max_length: Tokens of query and passage together, of the longer one the end is cut. Default: what the model's
            tokenizer says, 512 at most.

    Raises:
        UserError: The data is given twice or in part, or without a model, or a number is out of range.
    """

    auto: ClassVar[Any] = AutoModelForSequenceClassification
    head: ClassVar[str] = "sequence-classification head"
    monitor: ClassVar[str] = "ndcg_at_10"
    default_length: ClassVar[int] = 512
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "reranking_default.yaml"
    inputs: ClassVar[Mapping[str, bool]] = {"text": False, "text_pair": False}
    targets: ClassVar[Mapping[str, bool]] = {"label": False}
    left_out: ClassVar[Sequence[str]] = ("length", "cut")

    def __init__(self, model: str | None = None, **data: Unpack[TextData]) -> None:
        super().__init__(model, **data)
        self._passages: list[int | None] = []  # of each record, where it has a list

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def are_probabilities(self) -> bool:
        """Whether all training labels are from 0 to 1; without any, whether the model's scores are."""
        if "train" not in self.splits:
            return read_activation(self.model) == SIGMOID
        return all(0 <= label <= 1 for label in self.examples("train")["label"][:])

    @cached_property
    def activation(self) -> str:
        """What makes a score of the model's output: a cross-encoder's own, unless labels are of another kind."""
        own = read_activation(self.model)
        if "train" not in self.splits:
            return own
        if not self.are_probabilities:
            return IDENTITY
        return own if self.pretrained.config.num_labels == 1 else SIGMOID

    @cached_property
    def length(self) -> int:
        """Tokens of query and passage."""
        of_tokenizer = min(self.default_length, self.tokenizer.model_max_length)
        return self.pretrained.length(self.max_length or min(of_tokenizer, self.pretrained.positions or of_tokenizer))

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with one output, in float32."""
        new_head = self.pretrained.config.num_labels != 1
        model = self.pretrained.build(num_labels=1, problem_type="regression", new_head=new_head)
        model.config.sentence_transformers = {"activation_fn": self.activation}  # where its CrossEncoder looks
        return model

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in.

        Raises:
            UserError: It has another number of outputs.
        """
        model = super().load_model(folder)
        config: Any = model.config
        outputs = config.num_labels
        if outputs != 1:
            raise UserError(f"it has {outputs} outputs, and a score is one: give a model with one label")
        return model

    def write_files(self, folder: Path) -> None:
        """The number of tokens, where sentence-transformers and other programs look for it."""
        file = folder / "tokenizer_config.json"
        if file.is_file():
            settings = json.loads(file.read_text(encoding="utf-8")) | {"model_max_length": self.length}
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy of probabilities, squared error of other scores."""
        score_B, label_B = outputs.logits[:, 0].float(), batch["labels"].float()
        loss = binary_cross_entropy_with_logits if self.are_probabilities else mse_loss
        return loss(score_B, label_B)

    def distillation_loss(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """The squared error of the model's output, which has no temperature."""
        return mse_loss(student.float(), teacher.float())

    # -- data ----------------------------------------------------------------------------------------------------------

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Questions, each with passages that answer it or do not."""
        return generate_candidates(split)

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Texts that are not empty, and labels that are numbers."""
        examples = require_written(super().check(examples, origin=origin), self.inputs, origin=origin)
        return with_numbers(examples, "label", origin=origin)

    def features(self, split: Split) -> Dataset:
        """The tokens of all pairs; says how many are cut, and refuses a validation set without a relevant passage."""
        if split not in self._features:
            say_cut(super().features(split)["cut"][:], split, length=self.length)
            if split == "validation":
                self._require_relevant()
        return self._features[split]

    @cached_property
    def queries(self) -> Tensor:
        """The number of each validation pair's query."""
        texts = self.examples("validation")["text"][:]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        return torch.tensor([numbers[text] for text in texts])

    def _require_relevant(self) -> None:
        """Refuse a validation set in which nothing can be ranked; say how many queries are left out."""
        labels = torch.tensor(self.examples("validation")["label"][:])
        found, all_queries = self.queries[labels > 0].unique(), int(self.queries.max()) + 1
        if not len(found):
            raise UserError(
                f"none of the {all_queries} queries of {self.table('validation')[1]!r} has a relevant passage (a label "
                "above 0), so no ranking can be measured: correct the labels."
            )
        if len(found) < all_queries:
            rank_zero_info(
                f"{all_queries - len(found)} of the {all_queries} validation queries have no relevant passage (a label "
                "above 0), and are left out."
            )

    def encode(self, examples: Columns) -> Columns:
        """Tokens of query and passage, and the label."""
        encoded = self.tokenizer(examples["text"], examples["text_pair"], truncation=True, max_length=self.length)
        columns = dict(encoded) | {"cut": [bool(each.overflowing) for each in encoded.encodings]}
        return columns | ({"labels": examples["label"]} if "label" in examples else {})

    # -- measuring and prediction --------------------------------------------------------------------------------------

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The pair's number, its score, and its label."""
        return torch.stack([batch["index"].float(), outputs.logits[:, 0].float(), batch["labels"].float()], dim=1)

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """The metrics of the ranking, in per cent."""
        return means(self._by_query(rows))

    def _by_query(self, rows: Tensor) -> dict[str, Tensor]:
        return ranking_scores(rows[:, 1], rows[:, 2], self.queries[rows[:, 0].long()])

    def evaluation_details(self, metric: Any) -> dict[str, Any]:
        """The intervals, by drawing queries."""
        return {} if metric.counted is None else {"intervals": intervals(self._by_query(metric.counted))}

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take records with a query and one passage, or a list of passages to be ranked."""
        pairs: list[dict[str, Any]] = []
        where: list[str] = []
        self._passages = []
        for place, record in zip(places, records, strict=True):
            given = self.wanted.own_record(record).get("text_pair")
            passages = given if isinstance(given, list) else [given]
            if not passages:
                raise UserError(f"{place} has an empty list as 'text_pair': give a passage, or several to be ranked.")
            self._passages.append(len(passages) if isinstance(given, list) else None)
            pairs += [record | {self.wanted.names["text_pair"]: passage} for passage in passages]
            where += [place] * len(passages)
        super().read_inputs(pairs, where)

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """A text that is not empty."""
        super().check_input(name, value, place=place)
        require_text(name, value, place=place)

    def predictions(self, batches: Sequence[Any]) -> list[dict[str, Any]]:
        """``score`` of each passage; of a list ``ranking``, the best first, each with its place in the list."""
        scored = iter(super().predictions(batches))
        answers = []
        for count in self._passages:
            if count is None:
                answers.append(next(scored))
                continue
            found = [next(scored) for _ in range(count)]
            ranked = sorted(range(count), key=lambda place: -found[place]["score"])
            ranking = [{"passage": place, "score": found[place]["score"]} for place in ranked]
            answers.append(found[0] | {"ranking": ranking})
            del answers[-1]["score"]
        return answers

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The pairs' numbers and scores."""
        found = super().predict_batch(model, batch)
        config: Any = model.config
        scores_B = found["logits"][:, 0].float()
        own = _activation_of(config._name_or_path)
        return {"index": found["index"], "scores": scores_B.sigmoid() if own == SIGMOID else scores_B}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``score``."""
        return [{"score": score} for score in batch["scores"].tolist()]


@cache
def _activation_of(name: str) -> str:
    """What a saved model's scores are made with; of a model of the hub asked for once, not for each batch."""
    return read_activation(name)
