"""What kinds of examples embeddings are learned from and measured on, checked, and what is searched in what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from datasets import Dataset, Value
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from bplightning.errors import UserError
from bplightning.tasks.shared.table import require_rows


class Kind(Enum):
    """What examples are, by the columns they have."""

    TEXTS = "texts"
    TAUGHT = "texts with embeddings"
    SCORED = "scored pairs"
    PAIRS = "pairs"


def kind_of(table: Dataset, *, origin: str) -> Kind:
    """The kind of examples.

    Args:
        table: Columns under the task's own names.
        origin: What to call the examples in messages.

    Raises:
        UserError: The columns do not go together.
    """
    columns = set(table.column_names)
    for one, other in (("score", "text_pair"), ("negative", "text_pair")):
        if one in columns and other not in columns:
            raise UserError(f"{origin!r} has a column {one!r} without {other!r}: give both, or take {one!r} out.")
    if "embedding" in columns:
        if "text_pair" in columns:
            raise UserError(
                f"{origin!r} has pairs and a column 'embedding', which is of one text: take 'embedding' out, or "
                "'text_pair'."
            )
        return Kind.TAUGHT
    if "score" in columns:
        if "negative" in columns:
            raise UserError(
                f"{origin!r} has pairs with a score and a column 'negative', which has none: take 'negative' out, or "
                "'score'."
            )
        return Kind.SCORED
    return Kind.PAIRS if "text_pair" in columns else Kind.TEXTS


def without_blank_lines(table: Dataset) -> Dataset:
    """The lines of a text file, without line breaks, and without those that are empty."""
    lines = [line.strip() for line in table["text"][:]]
    return Dataset.from_dict({"text": [line for line in lines if line]})


def require_written(table: Dataset, names: Iterable[str], *, origin: str) -> Dataset:
    """The table, whose texts must have a character.

    Args:
        table: Texts.
        names: Their columns; those that are not there are passed over.
        origin: What to call the examples in messages.

    Raises:
        UserError: A text is empty.
    """
    for name in names:
        if name in table.column_names:
            for row, text in enumerate(table[name][:]):
                if not text.strip():
                    raise UserError(
                        f"example {row + 1} of {origin!r} has an empty {name!r}, which means nothing: write a text, or "
                        "remove the example."
                    )
    return table


def require_text(name: str, value: str, *, place: str) -> None:
    """Refuse a text of a record that is empty.

    Args:
        name: What its column is called.
        value: The text.
        place: Where the record stands, for messages.

    Raises:
        UserError: It is empty.
    """
    if not value.strip():
        raise UserError(f"{place} has an empty {name!r}, which means nothing: write a text.")


def with_numbers(table: Dataset, name: str, *, origin: str) -> Dataset:
    """The table, with the numbers of a column that may hold them as texts, as CSV does.

    Raises:
        UserError: One is no number.
    """
    numbers = []
    for row, value in enumerate(table[name][:]):
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"example {row + 1} of {origin!r} has the {name} {value!r}, which must be a number: correct it, or "
                "remove the example."
            )
        numbers.append(number)
    if table.features[name] == Value("float64"):
        return table
    return table.remove_columns(name).add_column(name, numbers)


def require_vectors(table: Dataset, *, origin: str) -> int:
    """How many numbers the embeddings of examples have.

    Args:
        table: With a column ``embedding``.
        origin: What to call the examples in messages.

    Raises:
        UserError: They are not lists of as many finite numbers each.
    """
    first = 0
    for row, example in enumerate(table.select_columns("embedding")):  # all at once they may be far larger than tokens
        value = example["embedding"]
        good = isinstance(value, list) and value and all(isinstance(each, int | float) for each in value)
        if not good or not all(map(math.isfinite, value)):
            raise UserError(
                f"example {row + 1} of {origin!r} has no embedding that is a list of numbers: `predict` writes one, "
                "and CSV cannot hold it."
            )
        first = first or len(value)
        if len(value) != first:
            raise UserError(
                f"example {row + 1} of {origin!r} has an embedding of {len(value)} numbers, and the first one has "
                f"{first}: make all with one model."
            )
    return first


def require_learnable(table: Dataset, *, batch_size: int, origin: str) -> None:
    """Refuse training data from which nothing is learned as it is.

    Args:
        table: Checked examples.
        batch_size: Examples of a batch.
        origin: What to call the examples in messages.

    Raises:
        UserError: Pairs come one by one, or a score is none that a cosine can have.
    """
    kind = kind_of(table, origin=origin)
    if kind == Kind.PAIRS and "negative" not in table.column_names:
        if batch_size == 1:
            raise UserError(
                "batch_size is 1, but pairs are learned against the other passages of their batch: give a batch_size "
                "of 2 or more (32 is usual), or a column 'negative'."
            )
        if len(table) == 1:
            raise UserError(
                f"{origin!r} has one pair only, but pairs are learned against the passages of others: give two or "
                "more, or a column 'negative'."
            )
    if kind == Kind.SCORED:
        for row, score in enumerate(table["score"][:]):
            if not -1 <= score <= 1:
                raise UserError(
                    f"example {row + 1} of {origin!r} has the score {score:g}, which a cosine learns and so must be "
                    "from -1 to 1: divide all scores by the greatest."
                )


def require_measurable(table: Dataset, *, dimensions: int, origin: str) -> None:
    """Refuse validation data by which nothing can be measured.

    Args:
        table: Checked examples.
        dimensions: Numbers of the model's vectors.
        origin: What to call the examples in messages.

    Raises:
        UserError: It is texts alone, or embeddings of another length.
    """
    kind = kind_of(table, origin=origin)
    if kind == Kind.TEXTS:
        raise UserError(
            f"{origin!r} has texts alone, by which nothing can be measured: add a column 'text_pair' (the passage to "
            "find), both 'text_pair' and 'score', or 'embedding'."
        )
    if kind == Kind.TAUGHT and (found := len(table[0]["embedding"])) != dimensions:
        raise UserError(
            f"the embeddings of {origin!r} have {found} numbers, and the model's {dimensions}, so they cannot be "
            "compared: validate by pairs or scores."
        )


def say_cut(cut: Sequence[bool], split: str, *, length: int) -> None:
    """Tell the user how much is not read to its end.

    Args:
        cut: Of each row whether a text is cut.
        split: Whose rows they are.
        length: Tokens of a text at most.
    """
    if any(cut):
        rank_zero_info(
            f"{sum(cut)} of the {len(cut)} rows of the {split} set are longer than {length} tokens and cut: "
            "--task.max_length says how long they may be."
        )


def stacked(
    rows: list[dict[str, Any]], *, pad: Callable[[list[dict[str, Any]]], Any], parts: Sequence[str]
) -> dict[str, Tensor]:
    """A batch of all texts: the first one of each example, then the second one of each, then the third.

    Args:
        rows: Examples.
        pad: From rows of ``input_ids`` to a batch, padded to the longest.
        parts: Columns of tokens; those that are not there are passed over.
    """
    there = [name for name in parts if name in rows[0]]
    batch = dict(pad([{"input_ids": row[name]} for name in there for row in rows]))
    others = sorted(set(rows[0]) - set(there))
    return batch | {name: torch.tensor([row[name] for row in rows]) for name in others}


@dataclass(frozen=True)
class Search:
    """Queries and the passages to find.

    Attributes:
        queries: How many queries there are: they are the first texts.
        texts: All texts, each once among the queries and once among the passages.
        relevant: Pairs of a query's number and a relevant passage's, ``(N, 2)``.
    """

    queries: int
    texts: Dataset
    relevant: Tensor

    @classmethod
    def of(cls, pairs: Dataset, more: Iterable[str], *, origin: str) -> Search:
        """What examples ask for: each text is a query, which its pair answers; other passages are in the way.

        Args:
            pairs: With ``text`` and ``text_pair``, and possibly ``negative``.
            more: Passages that answer nothing.
            origin: What to call the examples in messages.

        Raises:
            UserError: There is one passage only.
        """
        asked, answers = pairs["text"][:], pairs["text_pair"][:]
        negatives = pairs["negative"][:] if "negative" in pairs.column_names else []
        queries, passages = _numbered(asked), _numbered([*answers, *negatives, *more])
        if len(passages) < 2:
            raise UserError(f"{origin!r} has one passage only, which every query finds: give two or more.")
        relevant = dict.fromkeys((queries[text], passages[pair]) for text, pair in zip(asked, answers, strict=True))
        texts = require_rows(Dataset.from_dict({"text": [*queries, *passages]}), origin=origin)
        return cls(len(queries), texts, torch.tensor(list(relevant)))

    def seen(self, numbers_N: Tensor, vectors_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `retrieval_scores` takes, where only some texts were seen, as in a run that validates on a few batches.

        Args:
            numbers_N: The texts' places in `texts`, ascending.
            vectors_ND: Their vectors.

        Returns:
            Vectors of queries with a relevant passage, those of passages, and the relevant pairs, all of what was seen.
        """
        is_query_N = numbers_N < self.queries
        passages = numbers_N[~is_query_N] - self.queries
        pairs = self.relevant[torch.isin(self.relevant[:, 1], passages)]
        kept_N = is_query_N & torch.isin(numbers_N, pairs[:, 0])
        queries = numbers_N[kept_N]
        pairs = pairs[torch.isin(pairs[:, 0], queries)]
        places = (
            torch.searchsorted(queries, pairs[:, 0].contiguous()),
            torch.searchsorted(passages, pairs[:, 1].contiguous()),
        )
        return vectors_ND[kept_N], vectors_ND[~is_query_N], torch.stack(places, dim=1)


def _numbered(texts: Iterable[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def prompted(table: Dataset, prompts: dict[str, str]) -> Dataset:
    """The table, with a text before each text of some columns.

    Args:
        table: Texts.
        prompts: Column to what goes before its texts.
    """
    there = {name: prompt for name, prompt in prompts.items() if prompt and name in table.column_names}
    if not there:
        return table

    def add(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [prompt + text for text in columns[name]] for name, prompt in there.items()}

    return table.map(add, batched=True, keep_in_memory=True)
