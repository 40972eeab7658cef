"""Who may teach whom: labels and tokens that mean the same, and what a teacher of another family takes as inputs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from bplightning.compaction.example_inputs import positions_of
from bplightning.compaction.loading import load_saved
from bplightning.contracts.task import Task
from bplightning.distillation.load_finetuned import given_tokens, load_fitting
from bplightning.errors import UserError


def load_teacher(name: str, task: Task, student: PreTrainedModel) -> PreTrainedModel:
    """A teacher's model, refused where it decides about, or reads, something else than the model that learns.

    Args:
        name: Folder or hub name.
        task: The task.
        student: The model that learns.

    Raises:
        UserError: It cannot be loaded, is not fine-tuned, or does not fit.
    """
    teacher = load_readable(name, task)
    require_same_labels(teacher, student, name=name)
    return teacher


def load_readable(name: str, task: Task) -> PreTrainedModel:
    """A teacher's model, refused where it is not fine-tuned, or reads something else; before there is a student.

    Args:
        name: Folder or hub name.
        task: The task.

    Raises:
        UserError: It is, or it cannot be loaded.
    """
    teacher = load_fitting(task, name, what="the teacher")
    require_same_tokens(teacher, task, name=name)
    return teacher


def require_same_labels(teacher: PreTrainedModel, student: PreTrainedModel, *, name: str) -> None:
    """Refuse a teacher whose outputs mean something else; what is decided about tokens has no labels.

    Args:
        teacher: The teacher.
        student: The model that learns.
        name: What the teacher is called, for the message.

    Raises:
        UserError: The labels differ in number, name or order.
    """
    if student.get_output_embeddings() is not None:
        return
    of_teacher, own = ([str(each) for each in (model.config.id2label or {}).values()] for model in (teacher, student))
    counted = any(map(_unnamed, (of_teacher, own))) or _numbers(of_teacher) != _numbers(own)
    if len(of_teacher) == len(own) and (counted or of_teacher == own or _folded(of_teacher) == _folded(own)):
        return  # labels without names can only be counted
    rule = "its labels in another order" if sorted(of_teacher) == sorted(own) else "other labels"
    raise UserError(
        f"the teacher {name!r} has {rule} than the model: {of_teacher[:8]} and {own[:8]}. Take one that was fine-tuned "
        "on the same data, or baseline."
    )


def require_same_tokens(teacher: PreTrainedModel, task: Task, *, name: str) -> None:
    """Refuse a teacher that would read the task's tokens as others.

    Args:
        teacher: The teacher.
        task: The task, whose tokenizer makes the inputs of both.
        name: Folder or hub name of the teacher.

    Raises:
        UserError: Its own tokenizer numbers them otherwise.
    """
    folder = Path(name)
    # Where a folder has no tokenizer there is nothing to compare with: transformers would make up an empty one.
    unsaid = folder.is_dir() and not any(any(folder.glob(each)) for each in ("tokenizer*", "*vocab*", "*.model"))
    if task.tokenizer is None or unsaid:
        return
    tokens = given_tokens(teacher, task.tokenizer)
    theirs = load_saved(AutoTokenizer.from_pretrained, name, what="the tokenizer of the teacher").get_vocab()
    different = [token for token, number in tokens.items() if theirs.get(token) != number]
    if different:
        raise UserError(
            f"the teacher {name!r} numbers {len(different)} of the tokenizer's {len(tokens)} tokens otherwise, for "
            f"example {different[0]!r}. Take a teacher with the model's tokenizer."
        )


class TeacherInputs:
    """What a teacher takes of a student's inputs, and segments where only the teacher tells them apart.

    DistilBERT has no ``token_type_ids``, for example, and its tokenizer makes none; a BERT that teaches it has learned
    with them which of two texts is the question.

    Args:
        teacher: The teacher.
        student: The model that learns.
        task: The task, whose tokenizer says what separates two texts.
        name: What the teacher is called, for the message.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, task: Task, *, name: str) -> None:
        self.taken, own = (inspect.signature(model.forward).parameters for model in (teacher, student))
        self.positions, self.name = positions_of(teacher) if _has_table(teacher) else None, name
        segments = "token_type_ids" in self.taken and getattr(teacher.config, "type_vocab_size", 0) > 1
        # What is decided about tokens is learned from texts by themselves, one after the other.
        segments = segments and "token_type_ids" not in own and teacher.get_output_embeddings() is None
        self.separator: int | None = getattr(task.tokenizer, "sep_token_id", None) if segments else None

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The teacher's inputs.

        Args:
            inputs: The student's, of text ``(B, L)`` each.

        Raises:
            UserError: They are longer than the teacher has positions.
        """
        ids = inputs.get("input_ids")
        if ids is not None and self.positions is not None and ids.shape[1] > self.positions:
            raise UserError(
                f"the teacher {self.name!r} has {self.positions} positions, and the batch is {ids.shape[1]} tokens "
                f"long: lower the task's max_length to {self.positions}, or take another teacher."
            )
        if not self.taken.keys() & inputs.keys():  # a wrapper, which hands on what it is given
            return inputs
        given = {name: value for name, value in inputs.items() if name in self.taken}
        if ids is not None and self.separator is not None and "token_type_ids" not in given:
            given["token_type_ids"] = segments(ids, self.separator, inputs.get("attention_mask"))
        return given


def segments(ids_BL: Tensor, separator: int, mask_BL: Tensor | None = None) -> Tensor:
    """Which text each token is of, as BERT's tokenizer says it: 0 to the first separator, then 1, in padding 0.

    Args:
        ids_BL: Tokens.
        separator: The token that ends a text.
        mask_BL: 1 where a token is, 0 in padding; `None` where there is none.

    >>> import torch
    >>> segments(torch.tensor([[2, 7, 8, 3, 9, 3, 0]]), 3, torch.tensor([[1, 1, 1, 1, 1, 1, 0]])).tolist()
    [[0, 0, 0, 0, 1, 1, 0]]
    """
    ends = (ids_BL == separator).long()
    segments_BL = (ends.cumsum(1) - ends).clamp(max=1)
    return segments_BL if mask_BL is None else segments_BL * mask_BL.long()


def _has_table(model: PreTrainedModel) -> bool:
    """Whether a model looks up positions in a table, which has an end; rotary ones are computed."""
    tables = (name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return any("position" in name or name == "wpe" for name in tables)


def _unnamed(labels: list[str]) -> bool:
    """Whether nobody has named labels: transformers calls them so."""
    return all(label.startswith("LABEL_") for label in labels)


def _numbers(labels: list[str]) -> bool:
    return all(label.isdecimal() for label in labels)


def _folded(labels: list[str]) -> list[str]:
    """Labels without regard to case, ``NEGATIVE`` as ``negative``, where that leaves each its own."""
    folded = [label.casefold() for label in labels]
    return folded if len(set(folded)) == len(labels) else labels
