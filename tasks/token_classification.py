"""Token classification: a tag for each word, as for names in a text (NER) or parts of speech."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedded.token_classification import generate
from bplightning.tasks.shared.class_labels import MULTI, Labels, labels_of, labels_of_model
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.tag_spans import count_right, entities_of, mark_spans, span_scores
from bplightning.tasks.shared.tagged_words import words_and_tags
from bplightning.tasks.shared.text_task import Columns, Split, TextTask

IGNORED = -100
"""The label of tokens that carry none."""

WORD = re.compile(r"\w(\S*\w)?|[^\w\s]")
"""A word of a text to be predicted: as data sets have it, punctuation marks around words are words of their own."""


class TokenClassification(TextTask):
    """Tag each word, such as names (NER).

    Token classification: a tag for each word, as for names in a text (NER) or parts of speech.

    An example is a list of words and one of as many tags, names or numbers of the data set's declared names. The first
    piece of a word carries its tag. Tags with prefixes (B-, I-, ...) are measured as spans, others word by word. With
    no argument it uses its embedded data set and model.

    Args:
        train_file: Training examples: JSON lines or Parquet, since CSV holds no lists. May be left out where nothing is
            trained.
        columns: What the columns "tokens" (the words) and "tags" are called in the data, where they have other names:
            for CoNLL-2003 --task.columns.tags=ner_tags.
        max_length: Tokens of an example; words after that get no tag, and a warning counts them. Default: 128, or
            what the model has positions for where that is less.
    """

    monitor: ClassVar[str] = "f1"
    auto: ClassVar[Any] = AutoModelForTokenClassification
    head: ClassVar[str] = "token-classification head"
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "token_classification_default.yaml"
    inputs: ClassVar[Mapping[str, bool]] = {"tokens": False}
    targets: ClassVar[Mapping[str, bool]] = {"tags": False}

    @cached_property
    def labels(self) -> Labels:
        """The tags of the training data, or without any those of the model."""
        if "train" not in self.splits:
            return _labels_of(self.pretrained.config)
        table, origin = self.table("train")
        labels = labels_of(words_and_tags(table, origin=origin), self.pretrained.config, origin=origin)
        if all(name.isdigit() for name in labels.names):
            rank_zero_warn(
                f"the tags of {origin!r} are numbers without names, so it is unknown where a span begins: each word is "
                "scored by itself, also those outside of any span. Give names such as B-PER."
            )
        return labels

    def build_model(self) -> PreTrainedModel:
        """The pretrained model with an output for each tag, in float32."""
        names = {key: self.labels.config()[key] for key in ("id2label", "label2id")}
        return self.pretrained.build(**names, new_head=len(self.labels.names) != self.pretrained.config.num_labels)

    # -- data ----------------------------------------------------------------------------------------------------------

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """As many tags as words, all of them known, by name."""
        return self.labels.check(words_and_tags(examples, origin=origin), origin=origin).rename_column("label", "tags")

    def encode_settings(self) -> dict[str, Any]:
        """The tags too."""
        return super().encode_settings() | {"labels": self.labels.names}

    def encode(self, examples: Columns) -> Columns:
        """Tokens; at the first piece of a word its tag, or where there are none the word's number; words cut off."""
        # Joined by blanks, not by `is_split_into_words`: where a blank is part of a piece, as in RoBERTa, that would
        # take pieces that no word begins with in the text a model was pretrained on.
        words, marks = examples["tokens"], [list(range(len(row))) for row in examples["tokens"]]
        options = {"truncation": True, "max_length": self.length, "return_offsets_mapping": True}
        encoded = dict(self.tokenizer([" ".join(row) for row in words], **options))
        firsts = [first_pieces(*row) for row in zip(words, encoded.pop("offset_mapping"), strict=True)]
        if "tags" in examples:
            number = {name: index for index, name in enumerate(self.labels.names)}
            marks = [[number[tag] for tag in row] for row in examples["tags"]]
        encoded["labels"] = [
            [row[word] if word is not None else IGNORED for word in first]
            for row, first in zip(marks, firsts, strict=True)
        ]
        last = [max((word for word in first if word is not None), default=-1) for first in firsts]
        return encoded | {"lost": [len(row) - 1 - word for row, word in zip(words, last, strict=True)]}

    def features(self, split: Split) -> Dataset:
        """The tokenized examples of a split; a warning counts words that are lost, once."""
        new = split not in self._features
        features = super().features(split)
        if new:
            self._warn_of_lost(features, what=f"the {split} set")
        return features

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads labels too."""
        multiple = self.pretrained.pad_to_multiple_of
        return DataCollatorForTokenClassification(
            self.tokenizer, pad_to_multiple_of=multiple, label_pad_token_id=IGNORED
        )

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Passages with names of persons, towns, companies and so on."""
        return generate(split)

    def _warn_of_lost(self, features: Dataset, *, what: str) -> None:
        if lost := sum(features["lost"][:]):
            rank_zero_warn(
                f"{lost} words of {what} get no tag, for examples are cut at max_length={self.length} tokens: raise "
                "max_length, or give shorter examples."
            )

    # -- measuring -----------------------------------------------------------------------------------------------------

    def evaluate_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> Any:
        """The model's outputs, refused where they stand for other tags than the data has."""
        found = _labels_of(model.config)
        if not self.labels.fit(found):
            raise UserError(
                f"the model predicts other tags than the data has, or the same in another order: {found}, where the "
                f"data has {self.labels}. Give a model fine-tuned on data with these tags."
            )
        return super().evaluate_batch(model, batch)

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A distribution for each word, ``(B, L, K)``: no padding, and no word's other pieces."""
        return outputs.logits.masked_fill(batch["labels"][..., None] == IGNORED, -torch.inf)

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """What `count_right` counts."""
        names, spans, counts = self.labels.names, mark_spans(self.labels.names), []
        for found, wanted in zip(outputs.logits.argmax(dim=-1).tolist(), batch["labels"].tolist(), strict=True):
            kept = [place for place, label in enumerate(wanted) if label != IGNORED]
            predicted, gold = ([names[row[place]] for place in kept] for row in (found, wanted))
            counts.append(count_right(predicted, gold, spans=spans))
        return torch.tensor(counts, device=batch["labels"].device)

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """In per cent: ``f1`` and ``accuracy``, and of spans ``precision`` and ``recall``."""
        return span_scores(rows, spans=mark_spans(self.labels.names))

    # -- prediction ----------------------------------------------------------------------------------------------------

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take records with ``tokens``, a list of words, or ``text``, whose words are found in it as `WORD` says."""
        given = []
        records = [self.wanted.own_record(record) for record in records]
        self._texts = [None if "tokens" in record else record.get("text") for record in records]
        for text, record in zip(self._texts, records, strict=True):
            words = [match.group() for match in WORD.finditer(text)] if isinstance(text, str) else None
            given.append(record if words is None else {**record, "tokens": words})
        super().read_inputs(given, places)
        assert self._given is not None
        self._words = [record["tokens"] for record in given]
        self._warn_of_lost(self._given, what="what is to be predicted")

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """Words are a list of texts, and there is one at least."""
        if not (isinstance(value, list) and value and all(isinstance(word, str) for word in value)):
            raise UserError(
                f"{place} must have {name!r}, a list of words, or 'text' with a word; its words are {value!r}."
            )

    def predict_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The best tag of each token, its probability, the word that the token begins, and the tags' names."""
        inputs = {name: value for name, value in self.model_inputs(batch).items() if name != "labels"}
        scores_BL, tags_BL = model(**inputs).logits.float().softmax(dim=-1).max(dim=-1)
        found = {"index": batch["index"], "places": batch["labels"], "tags": tags_BL, "scores": scores_BL}
        return found | {"names": _labels_of(model.config).names}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``tags`` and ``scores`` of the words, null for a word cut off, and where tags mark spans, ``entities``."""
        columns = (batch[name].tolist() for name in ("index", "places", "tags", "scores"))
        return [self._answer(*row, names=batch["names"]) for row in zip(*columns, strict=True)]

    def _answer(
        self, index: int, places: list[int], best: list[int], probabilities: list[float], *, names: Sequence[str]
    ) -> dict[str, Any]:
        words = self._words[index]
        tags: list[Any] = [None] * len(words)
        scores: list[Any] = [None] * len(words)
        for place, tag, score in zip(places, best, probabilities, strict=True):
            if place != IGNORED:
                tags[place], scores[place] = names[tag], score
        entities = entities_of(tags, scores, words=words, text=self._texts[index]) if mark_spans(names) else None
        return {"tags": tags, "scores": scores} | ({} if entities is None else {"entities": entities})


def _labels_of(config: Any) -> Labels:
    """The tags of a fine-tuned model."""
    return replace(labels_of_model(config), kind=MULTI)


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The number of the word that a token is the first piece of, for each token of words joined by blanks.

    Args:
        words: The words.
        offsets: First character of each token, and last + 1; equal where it stands for none.

    >>> first_pieces(["New", "Yorker"], [(0, 0), (0, 3), (3, 8), (8, 10), (0, 0)])
    [None, 0, 1, None, None]
    """
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    found: list[int | None] = []
    last = -1
    for start, end in offsets:
        word = bisect_right(starts, end - 1) - 1 if start < end else last  # its end: a blank may be part of it
        found.append(word if word > last else None)
        last = max(word, last)
    return found
