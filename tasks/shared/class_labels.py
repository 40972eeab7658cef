"""The labels of classification data: numbers or names, one or several an example, or a number to be predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import ClassLabel, Dataset
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedConfig

from bplightning.errors import UserError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Kinds of problem, as a transformers configuration calls them."""
SINGLE, MULTI, REGRESSION = get_args(ProblemType)

NUMBER = re.compile(r"[+-]?(\d+|\d*\.\d+|\d+\.)([eE][+-]?\d+)?")
DEFAULT_NAME = re.compile(r"LABEL_\d+")
"""What transformers calls a label that nobody has named."""


@dataclass(frozen=True)
class Labels:
    """What can be predicted.

    Attributes:
        kind: `SINGLE`, `MULTI` or `REGRESSION`.
        names: The labels, in the order of the model's outputs; none for a regression.
        numbered: Whether data may give the number of a label in place of its name.
        positive: Of two classes the number of the one that F1 is about: the second as the data orders them.
    """

    kind: str
    names: tuple[str, ...] = ()
    numbered: bool = False
    positive: int = 1

    def config(self) -> dict[str, Any]:
        """Their fields in a model's configuration."""
        if self.kind == REGRESSION:
            return {"num_labels": 1, "problem_type": REGRESSION}
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            "problem_type": self.kind,
        }

    def encode(self, value: Any) -> Any:
        """One example's label, as `check` leaves it, as the model takes it: an index, zeros and ones, or a number.

        >>> Labels(SINGLE, ("bad", "good")).encode("good")
        1
        >>> Labels(MULTI, ("a", "b", "c")).encode(["c", "a"])
        [1.0, 0.0, 1.0]
        """
        if self.kind == REGRESSION:
            return float(value)
        if self.kind == SINGLE:
            return self.names.index(value)
        return [float(name in value) for name in self.names]

    def check(self, table: Dataset, *, origin: str) -> Dataset:
        """The examples with their labels by name, refused where one has a label that is not among these.

        Args:
            table: With a column ``label``.
            origin: What to call them in messages.

        Raises:
            UserError: A label is missing, is unknown, or is of another kind.
        """
        _, values = read_labels(table, self.kind, origin=origin)
        if self.kind == SINGLE:
            values = [self._known(value, row, origin) for row, value in enumerate(values)]
        elif self.kind == MULTI:
            values = [[self._known(each, row, origin) for each in value] for row, value in enumerate(values)]
        fingerprint = Hasher.hash([table._fingerprint, self])  # a hash of the values would be slower, and no better
        named = table.add_column("named", values, new_fingerprint=fingerprint)
        return named.remove_columns("label").rename_column("named", "label")

    def fit(self, model: Labels) -> bool:
        """Whether a fine-tuned model's outputs stand for these labels.

        Args:
            model: That model's labels.
        """
        own, theirs = ([name.casefold() for name in each.names] for each in (self, model))
        alike = own == theirs and len(set(own)) == len(own)  # without regard to case
        if self.kind != model.kind or self.names == model.names or alike:
            return self.kind == model.kind
        if len(self.names) != len(model.names):
            return False
        by_number = tuple(map(str, range(len(self.names))))
        unnamed = all(map(DEFAULT_NAME.fullmatch, model.names))
        return unnamed or self.names == by_number

    def __str__(self) -> str:
        """One line for messages."""
        return "a number" if self.kind == REGRESSION else f"{_shown(self.names)} ({self.kind})"

    def _known(self, name: str, row: int, origin: str) -> str:
        """The label of a name or a number."""
        if name in self.names:
            return name
        if self.numbered and name.isdecimal() and int(name) < len(self.names):
            return self.names[int(name)]
        raise UserError(
            f"example {row + 1} of {origin!r} has the label {name!r}, which the training data or the model does not "
            f"know; known are {_shown(self.names)}. Correct the label, or remove the example."
        )


def labels_of(
    table: Dataset, config: PreTrainedConfig | None, *, origin: str, problem_type: str | None = None
) -> Labels:
    """The labels that training data has, in the order of a model that has the same.

    Args:
        table: Training examples, with a column ``label``.
        config: The configuration of the model to start from. Where it has the same labels, their order is kept; where
            the data has only their numbers, their names are.
        origin: What to call the examples in messages.
        problem_type: Kind of the labels, where it is not to follow from them.

    Raises:
        UserError: A label is missing, or there is only one.
    """
    kind, values = read_labels(table, problem_type, origin=origin)
    if kind == REGRESSION:
        if problem_type is None and all(value.is_integer() for value in values):
            rank_zero_info(
                f"The labels of {origin!r} have a decimal point, {values[0]}, so a regression is learned; for classes "
                f"give --task.problem_type {SINGLE}."
            )
        return Labels(kind)
    seen = {name for value in values for name in ([value] if kind == SINGLE else value)}
    names = _declared(table) or tuple(sorted(seen, key=_natural))
    if len(names) < 2:
        what = f"one label only, {names[0]!r}" if names else "no label at all"
        raise UserError(f"{origin!r} has {what}: classification needs two or more.")
    own = () if config is None else _names_in(config)
    if set(own) == set(names):
        return Labels(kind, own, positive=own.index(names[1]))
    if names == tuple(map(str, range(len(own)))) and not any(map(DEFAULT_NAME.fullmatch, own)):
        return Labels(kind, own, numbered=True)
    return Labels(kind, names)


def best_labels(logits_BK: Tensor, names: Sequence[str] | Mapping[int, str]) -> list[dict[str, Any]]:
    """The most likely label of each example, and its probability.

    Args:
        logits_BK: A model's output, ``(B, K)``.
        names: The labels, in the order of the model's outputs.

    >>> import torch
    >>> best_labels(torch.tensor([[0.0, 0.0, 9.0]]), ["bad", "fair", "good"])
    [{'label': 'good', 'score': 0.9997532963752747}]
    """
    best_B, index_B = logits_BK.softmax(dim=-1).max(dim=-1)
    pairs = zip(index_B.tolist(), best_B.tolist(), strict=True)
    return [{"label": names[index], "score": score} for index, score in pairs]


def labels_of_model(config: PreTrainedConfig) -> Labels:
    """The labels of a fine-tuned model."""
    kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
    if kind == REGRESSION:
        return Labels(kind)
    names = _names_in(config)
    return Labels(kind, names, numbered=not any(name.isdecimal() for name in names))


def read_labels(table: Dataset, kind: str | None, *, origin: str) -> tuple[str, list[Any]]:
    """The labels of all examples, and their kind.

    Args:
        table: With a column ``label``.
        kind: `SINGLE`, `MULTI` or `REGRESSION`; `None` to see it from the labels.
        origin: What to call the examples in messages.

    Returns:
        The kind, and of each example a name, a list of names, or a number.

    Raises:
        UserError: A label is missing, or they are not of that kind or of any.
    """
    values, feature = table["label"][:], table.features["label"]
    inner = getattr(feature, "feature", None)
    if inner is not None and not isinstance(feature, dict):
        _require_kind(kind, (MULTI,), "lists", origin)
        return MULTI, [_names(value, inner, row, origin) for row, value in enumerate(values)]
    type_name = "ClassLabel" if isinstance(feature, ClassLabel) else str(getattr(feature, "dtype", feature))
    splits = kind == MULTI and "string" in type_name
    for row, value in enumerate(values):
        if _is_missing(value) and not splits:
            raise UserError(
                f"example {row + 1} of {origin!r} has no label ({value!r}): fill it, or remove the example."
            )
        if isinstance(feature, ClassLabel) and value < 0:
            raise UserError(
                f"example {row + 1} of {origin!r} has the label {value}, which stands for none (GLUE's test sets have "
                "no labels): take another split."
            )
    if splits:  # a cell of a CSV file holds no list
        texts = ([each.strip() for each in (value or "").split(",")] for value in values)
        return MULTI, [[each for each in text if each] for text in texts]
    if isinstance(feature, ClassLabel):
        _require_kind(kind, (SINGLE,), "classes", origin)
        return SINGLE, [feature.int2str(value) for value in values]
    if kind is None:
        kind = _natural_kind(type_name, values, origin)
    _require_kind(kind, (SINGLE, REGRESSION), f"of type {type_name}", origin)
    if kind == SINGLE:
        return SINGLE, list(map(_text, values))
    return REGRESSION, [_number(value, row, origin) for row, value in enumerate(values)]


def _natural_kind(type_name: str, values: Sequence[Any], origin: str) -> str:
    """The kind of labels that is not given; a number may be written as a text, as all are in CSV."""
    if type_name.startswith(("float", "decimal")):
        return REGRESSION
    if "string" in type_name:
        numbers = all(map(NUMBER.fullmatch, values)) and not all(value.lstrip("+-").isdecimal() for value in values)
        return REGRESSION if numbers else SINGLE
    if type_name.startswith(("int", "uint", "bool")):
        return SINGLE
    raise UserError(
        f"the labels of {origin!r} are of type {type_name}: give whole numbers or names for classes, lists of them "
        "where an example has several, or numbers with a decimal point for a regression."
    )


def _require_kind(kind: str | None, possible: Sequence[str], found: str, origin: str) -> None:
    if kind is not None and kind not in possible:
        raise UserError(
            f"the labels of {origin!r} are {found}, and what is to be learned is a {kind}: give labels of that kind, "
            f"or set problem_type to what they are, {' or '.join(possible)}."
        )


def _names(value: Any, inner: Any, row: int, origin: str) -> list[str]:
    """The labels of one list by name."""
    if value is None or any(each is None for each in value):
        raise UserError(f"example {row + 1} of {origin!r} has no label ({value!r}): give a list, empty for no label.")
    if any(not isinstance(each, str | int) for each in value):
        raise UserError(
            f"example {row + 1} of {origin!r} has the labels {value!r}: list the names or the numbers of those that "
            "apply."
        )
    return [inner.int2str(each) if isinstance(inner, ClassLabel) else _text(each) for each in value]


def _number(value: Any, row: int, origin: str) -> float:
    if (
        isinstance(value, bool)
        or (isinstance(value, str) and not NUMBER.fullmatch(value))
        or not math.isfinite(float(value))
    ):
        raise UserError(
            f"example {row + 1} of {origin!r} has the label {value!r}, where a regression needs a number: correct it."
        )
    return float(value)


def _names_in(config: Any) -> tuple[str, ...]:
    """The labels of a model, in the order of its outputs."""
    return tuple(config.id2label[index] for index in sorted(config.id2label))


def _declared(table: Dataset) -> tuple[str, ...]:
    """The names that the data declares, none where it does not."""
    feature = table.features["label"]
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    """A label's name: 1.0, which is how a table with gaps may hold 1, is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _natural(name: str) -> tuple[int, int, str]:
    """Whole numbers by value, before texts."""
    return (0, int(name), "") if name.removeprefix("-").isdecimal() else (1, 0, name)


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
