"""Embeddings of texts, for search and for comparing texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss
from transformers import PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedded.search import generate
from bplightning.tasks.embedding.encoder_task import EncoderData, EncoderTask
from bplightning.tasks.embedding.examples import (
    Kind,
    Search,
    kind_of,
    prompted,
    require_learnable,
    require_measurable,
    require_vectors,
    require_written,
    say_cut,
    stacked,
    with_numbers,
    without_blank_lines,
)
from bplightning.tasks.embedding.folder import dimensions, read_pooling
from bplightning.tasks.embedding.losses import TeacherLoss, distance, fingerprints, gathered, ranking_loss
from bplightning.tasks.embedding.pooling import Pooling
from bplightning.tasks.embedding.rankings import intervals, means, retrieval_scores
from bplightning.tasks.shared.label_scores import correlations
from bplightning.tasks.shared.table import read_file, require_texts
from bplightning.tasks.shared.text_task import Columns, Split
from bplightning.tasks.shared.wanted_columns import Wanted

PARTS = ("text", "text_pair", "negative")
"""Columns of texts; a batch has all of the first, then all of the second, then all of the third."""


class SentenceEmbedding(EncoderTask):
    """Embed texts, for search.

    Embedding models: one vector a text, such that texts of like meaning are close to each other.

    What is learned follows from the columns of the training data. Texts alone are learned from a teacher
    (`distillation.teacher`). With `embedding`, a teacher's vectors, they need none. Pairs of a text and a passage that
    answers it are learned against the other passages of the batch, and against `negative` where there is one. Pairs
    with a `score` are learned by the cosine. Validation pairs are measured by retrieval of the passages, scored pairs
    by Spearman's correlation, and embeddings by the mean cosine. With no argument it uses its embedded data set and
    model.

    Args:
        model: A folder of sentence-transformers or any other encoder, or its Hugging Face hub name; empty for the
            embedded one.
        teacher_loss: How vectors are compared with a teacher's: by cosine, by squared distance, or by similarities (the
            cosines of all pairs of a batch, for a teacher with vectors of another length).
        scale: What cosines are multiplied by where passages are learned against each other, above 0. Not used for a
            model that compares by dot products.
        passages_file: File of further passages, in a column "text", which answer no validation query and must not be
            found.
        columns: What the columns "text", "text_pair", "negative", "score" and "embedding" are called in the data, where
            they have other names; all but the first may be missing.
        max_length: Tokens of a text, what is longer is cut. Default: what the model's folder says, else 128.

    Raises:
        UserError: The data is given twice or in part, or without a model, a number is out of range, or the model's
            folder says otherwise than `pooling` or `normalize`.
    """

    embedded_recipe: ClassVar[Path | None] = Path(__file__).parent / "embedded" / "sentence_embedding_default.yaml"
    targets: ClassVar[Mapping[str, bool]] = {"text_pair": True, "negative": True, "score": True, "embedding": True}
    left_out: ClassVar[Sequence[str]] = ("length", "cut")

    def __init__(
        self,
        model: str | None = None,
        *,
        teacher_loss: TeacherLoss = "cosine",
        scale: float = 20.0,
        passages_file: str | None = None,
        **data: Unpack[EncoderData],
    ) -> None:
        super().__init__(model, **data)
        if not scale > 0:
            raise UserError(f"scale is {scale:g}; it must be above 0. Usual is 20.")
        if passages_file and not (self.dataset or self.sources["validation"]):
            raise UserError(f"passages_file is {passages_file!r}, but there is no validation data: give both.")
        self.teacher_loss: TeacherLoss = teacher_loss
        self.scale = scale
        self.passages_file = passages_file

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The encoder of a saved folder, in the precision it was saved in.

        Raises:
            UserError: Its vectors are of another length, and `teacher_loss` cannot compare them.
        """
        model = super().load_model(folder)
        self._require_comparable(dimensions(str(folder)), "its vectors")
        return model

    def _require_comparable(self, found: int, what: str) -> None:
        """Refuse vectors of another length, unless only their similarities are compared."""
        if found != self.dimensions and self.teacher_loss != "similarities":
            raise UserError(
                f"{what} have {found} numbers, and those of the model {self.model!r} {self.dimensions}: give "
                "--task.teacher_loss similarities, which compares any two models, or vectors of the same length"
            )

    # -- learning ------------------------------------------------------------------------------------------------------

    def teacher_logits(self, teacher: nn.Module, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A teacher's vectors, pooled as its own folder says."""
        config: Any = teacher.config
        pooling = _pooling_of(config._name_or_path) or self.pooling
        return pooling(outputs.last_hidden_state.float(), batch["attention_mask"])

    def distillation_loss(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """How far vectors are from a teacher's, which have no temperature."""
        return distance(student, teacher, self.teacher_loss)

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """What the columns of the training data ask for; 0 for texts alone, from which only a teacher learns."""
        vectors = self.logits(outputs, batch)
        if "score" in batch:
            return mse_loss(
                cosine_similarity(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :]), batch["score"].float()
            )
        if "embedding" in batch:
            return distance(vectors, batch["embedding"], self.teacher_loss)
        examples = len(batch["index"])
        return self._ranking_loss(vectors, batch, examples) if len(vectors) > examples else 0 * vectors.sum()

    def calibration_loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Of pairs how well passages are found in the batch; else how well texts are told from one another."""
        vectors = self.logits(outputs, batch)
        table, origin = self.table("train")
        parts = sum(name in table.column_names for name in PARTS)
        if kind_of(table, origin=origin) == Kind.PAIRS and len(vectors) % parts == 0:
            return self._ranking_loss(vectors, batch, len(vectors) // parts)
        return ranking_loss(self.pooling.comparable(vectors), self.pooling.comparable(vectors), None, scale=self._scale)

    @property
    def needs_teacher(self) -> bool:
        """Whether the training data is texts alone."""
        return "train" in self.splits and self.kind_in("train") == Kind.TEXTS

    @property
    def _scale(self) -> float:
        return 1.0 if self.pooling.dot else self.scale

    def _ranking_loss(self, vectors: Tensor, batch: dict[str, Any], examples: int) -> Tensor:
        """The loss of finding each text's passage among those of all ranks, negatives included."""
        vectors = self.pooling.comparable(vectors)
        prints = fingerprints(batch["input_ids"], batch["attention_mask"])
        own_passages, offset = gathered(vectors[examples : 2 * examples])
        candidates = torch.cat([own_passages, gathered(vectors[2 * examples :])[0]])
        of_queries, of_passages = gathered(prints[:examples])[0], gathered(prints[examples : 2 * examples])[0]
        of_candidates = torch.cat([of_passages, gathered(prints[2 * examples :])[0]])
        same = prints[examples : 2 * examples, None] == of_candidates
        same[:, : len(of_queries)] |= prints[:examples, None] == of_queries  # another answer to the same question
        return ranking_loss(vectors[:examples], candidates, same, scale=self._scale, offset=offset)

    # -- data ----------------------------------------------------------------------------------------------------------

    def generate(self, split: Split) -> list[dict[str, Any]]:
        """Questions, each with the passage that answers it."""
        return generate(split)

    def read_source(self, source: str) -> Dataset:
        """The rows of a file; of a text file the lines that are not empty."""
        return _written_lines(super().read_source(source), source)

    def kind_in(self, split: Split) -> Kind:
        """What the examples of a split are."""
        table, origin = self.table(split)
        return kind_of(table, origin=origin)

    def check(self, examples: Dataset, *, origin: str) -> Dataset:
        """Texts that are not empty, scores from -1 to 1, embeddings of one length; prompts are added here."""
        examples = require_written(require_texts(examples, PARTS, origin=origin), PARTS, origin=origin)
        kind = kind_of(examples, origin=origin)
        if kind == Kind.SCORED:
            examples = with_numbers(examples, "score", origin=origin)
        if kind == Kind.TAUGHT:
            found = require_vectors(examples, origin=origin)
            self._require_comparable(found, f"the embeddings of {origin!r}")
        query, passage = self.pooling.query_prompt, self.pooling.passage_prompt
        if kind != Kind.PAIRS:  # any other text has the prompt that `predict` gives it
            query = passage = self.pooling.prompt
        return prompted(examples, {"text": query, "text_pair": passage, "negative": passage})

    def examples(self, split: Split) -> Dataset:
        """The examples of a split; for retrieval all queries, then all passages, each once."""
        if split not in self._examples:
            found, (_, origin) = super().examples(split), self.table(split)
            if split == "train":
                require_learnable(found, batch_size=self.batch_size, origin=origin)
            elif self.kind_in(split) == Kind.PAIRS:
                self._examples[split] = self.search.texts
            else:
                require_measurable(found, dimensions=self.dimensions, origin=origin)
        return self._examples[split]

    @cached_property
    def search(self) -> Search:
        """The queries and passages of validation pairs."""
        table, origin = self.table("validation")
        more: list[str] = []
        if self.passages_file:
            more = [self.pooling.passage_prompt + text for text in self._further_passages(self.passages_file)]
        return Search.of(self.check(table, origin=origin), more, origin=origin)

    def _further_passages(self, file: str) -> list[str]:
        """The texts of a file whose columns are its own: what pairs call theirs does not matter."""
        wanted = Wanted({"text": False}, renamable=False)
        rows = _written_lines(read_file(file, wanted=wanted, cache_dir=self.cache_dir), file)
        passages = require_written(require_texts(rows, wanted.own, origin=file), wanted.own, origin=file)
        return list(passages["text"][:])

    def features(self, split: Split) -> Dataset:
        """The tokens of all texts; says how many rows are cut."""
        if split not in self._features:
            say_cut(super().features(split)["cut"][:], split, length=self.length)
        return self._features[split]

    def encode(self, examples: Columns) -> Columns:
        """Tokens of each text, scores and embeddings as they are."""
        encoded: Columns = {"length": [0] * len(examples["text"]), "cut": [False] * len(examples["text"])}
        for name in PARTS:
            if name in examples:
                found = self.tokenizer(examples[name], truncation=True, max_length=self.length)
                encoded["input_ids" if name == "text" else name] = found["input_ids"]
                overflow = [bool(each.overflowing) for each in found.encodings]
                encoded["cut"] = [one or other for one, other in zip(encoded["cut"], overflow, strict=True)]
                lengths = map(len, found["input_ids"])
                encoded["length"] = [max(pair) for pair in zip(encoded["length"], lengths, strict=True)]
        return encoded | {name: examples[name] for name in ("score", "embedding") if name in examples}

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads all texts to the longest: of all examples the first text, then of all the second, then the third."""
        return partial(stacked, pad=super().collator(split), parts=("input_ids", *PARTS[1:]))

    # -- measuring -----------------------------------------------------------------------------------------------------

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """The usual metric of what validation data there is."""
        return {Kind.PAIRS: "ndcg_at_10", Kind.SCORED: "spearman"}.get(self.kind_in("validation"), "agreement")

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Of retrieval each text's number and vector; of scored pairs cosine and score; else the cosine only."""
        vectors = self.logits(outputs, batch)
        if "score" in batch:
            return torch.stack(
                [
                    cosine_similarity(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :]),
                    batch["score"].to(vectors.dtype),
                ],
                dim=1,
            )
        if "embedding" in batch:
            return cosine_similarity(vectors, batch["embedding"].to(vectors.dtype))[:, None]
        return torch.cat([batch["index"][:, None].to(vectors.dtype), self.pooling.comparable(vectors)], dim=1)

    def scores(self, rows: Tensor) -> dict[str, Any]:
        """The metrics, in per cent."""
        kind = self.kind_in("validation")
        if kind == Kind.PAIRS:
            return means(self._by_query(rows))
        if kind == Kind.SCORED:
            return {"spearman": correlations(rows[:, 0], rows[:, 1])["spearman"]}
        return {"agreement": 100 * rows.mean()}

    def _by_query(self, rows: Tensor) -> dict[str, Tensor]:
        return retrieval_scores(*self.search.seen(rows[:, 0].long(), rows[:, 1:]))

    def evaluation_details(self, metric: Any) -> dict[str, Any]:
        """The intervals; of retrieval by drawing queries, since texts by themselves have no score."""
        if self.kind_in("validation") != Kind.PAIRS or metric.counted is None:
            return super().evaluation_details(metric)
        return {"intervals": intervals(self._by_query(metric.counted))}

    def evaluation_settings(self, metric: Any) -> dict[str, Any]:
        """How many texts were searched, or how many examples were compared."""
        if self.kind_in("validation") != Kind.PAIRS:
            return super().evaluation_settings(metric)
        if metric.counted is None:
            return {"queries": self.search.queries, "passages": len(self.search.texts) - self.search.queries}
        rows = metric.counted  # a few batches need not have all
        queries, passages, _ = self.search.seen(rows[:, 0].long(), rows[:, 1:])
        return {"queries": len(queries), "passages": len(passages)}


@cache
def _pooling_of(name: str) -> Pooling | None:
    """What follows a teacher's encoder, where its folder says so."""
    return read_pooling(name)


def _written_lines(rows: Dataset, source: str) -> Dataset:
    """The rows of a file; of a text file without those that are empty."""
    return without_blank_lines(rows) if Path(source).suffix.lower() == ".txt" else rows
