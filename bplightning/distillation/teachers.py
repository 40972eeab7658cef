"""Checking that a teacher fits a student (labels and tokens), and preparing its inputs for another family."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from bplightning.compaction.example_inputs import positions_of
from bplightning.compaction.saved_models import read_part
from bplightning.contracts.task import Task
from bplightning.distillation.load_finetuned import given_tokens, load_fitting
from bplightning.errors import UserError


def load_teacher(name: str, task: Task, student: PreTrainedModel) -> PreTrainedModel:
    """Load a teacher; refuse one with other labels or tokens than the student.

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
    """Load a teacher; refuse one that is not fine-tuned or has other tokens, before there is a student.

    Args:
        name: Folder or hub name.
        task: The task.

    Raises:
        UserError: It cannot be loaded, is not fine-tuned, or has other tokens.
    """
    teacher = load_fitting(task, name, what="the teacher")
    require_same_tokens(teacher, task, name=name)
    return teacher


def require_same_labels(teacher: PreTrainedModel, student: PreTrainedModel, *, name: str) -> None:
    """Refuse a teacher with other labels; language models have none.

    Args:
        teacher: The teacher.
        student: The model that learns.
        name: Name of the teacher, for the message.

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
        f"the teacher {name!r} has {rule} than the model: {of_teacher[:8]} and {own[:8]}. Use one that was fine-tuned "
        "on the same data, or baseline."
    )


def require_same_tokens(teacher: PreTrainedModel, task: Task, *, name: str) -> None:
    """Refuse a teacher that has other ids for the task's tokens.

    Args:
        teacher: The teacher.
        task: The task, whose tokenizer makes the inputs of both.
        name: Folder or hub name of the teacher.

    Raises:
        UserError: Its own tokenizer has other ids.
    """
    folder = Path(name)
    # Without a tokenizer in the folder there is nothing to compare with: transformers would make an empty one.
    unknown = folder.is_dir() and not any(any(folder.glob(each)) for each in ("tokenizer*", "*vocab*", "*.model"))
    if task.tokenizer is None or unknown:
        return
    tokens = given_tokens(teacher, task.tokenizer)
    theirs = read_part(AutoTokenizer, name, what="the tokenizer of the teacher").get_vocab()
    different = [token for token, number in tokens.items() if theirs.get(token) != number]
    if different:
        raise UserError(
            f"the teacher {name!r} has other ids for {len(different)} of the tokenizer's {len(tokens)} tokens, for "
            f"example {different[0]!r}. Use a teacher with the model's tokenizer."
        )


class TeacherInputs:
    """Makes a teacher's inputs from a student's, with segments if only the teacher uses them.

    DistilBERT has no ``token_type_ids``, for example, and its tokenizer makes none; but a BERT teacher has learned from
    them which of two texts is the question.

    Args:
        teacher: The teacher.
        student: The model that learns.
        task: The task, whose tokenizer has the token that separates two texts.
        name: Name of the teacher, for the message.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, task: Task, *, name: str) -> None:
        self.taken, own = (inspect.signature(model.forward).parameters for model in (teacher, student))
        self.positions, self.name = positions_of(teacher) if _has_table(teacher) else None, name
        segments = "token_type_ids" in self.taken and getattr(teacher.config, "type_vocab_size", 0) > 1
        # Language models are trained on single texts, without segments.
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
                f"long: lower the task's max_length to {self.positions}, or use another teacher."
            )
        if not self.taken.keys() & inputs.keys():  # a wrapper, which passes on all arguments
            return inputs
        given = {name: value for name, value in inputs.items() if name in self.taken}
        if ids is not None and self.separator is not None and "token_type_ids" not in given:
            given["token_type_ids"] = segments(ids, self.separator, inputs.get("attention_mask"))
        return given


def segments(ids_BL: Tensor, separator: int, mask_BL: Tensor | None = None) -> Tensor:
    """The segment of each token, as BERT's tokenizer numbers them: 0 up to the first separator, then 1, in padding 0.

    Args:
        ids_BL: Tokens.
        separator: The token that ends a text.
        mask_BL: 1 for tokens, 0 for padding; `None` without padding.

    >>> import torch
    >>> segments(torch.tensor([[2, 7, 8, 3, 9, 3, 0]]), 3, torch.tensor([[1, 1, 1, 1, 1, 1, 0]])).tolist()
    [[0, 0, 0, 0, 1, 1, 0]]
    """
    ends = (ids_BL == separator).long()
    segments_BL = (ends.cumsum(1) - ends).clamp(max=1)
    return segments_BL if mask_BL is None else segments_BL * mask_BL.long()


def _has_table(model: PreTrainedModel) -> bool:
    """Whether a model looks up positions in a table of fixed size; rotary ones are computed."""
    tables = (name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return any("position" in name or name == "wpe" for name in tables)


def _unnamed(labels: list[str]) -> bool:
    """Whether labels have only the default names of transformers."""
    return all(label.startswith("LABEL_") for label in labels)


def _numbers(labels: list[str]) -> bool:
    return all(label.isdecimal() for label in labels)


def _folded(labels: list[str]) -> list[str]:
    """Labels in lower case, so that ``NEGATIVE`` equals ``negative``, if they stay distinct."""
    folded = [label.casefold() for label in labels]
    return folded if len(set(folded)) == len(labels) else labels
