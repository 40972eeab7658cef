"""Saved models that are to decide as a task's own does: a baseline, a teacher, a model that is evaluated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bplightning.errors import UserError
from bplightning.loading import load_saved
from bplightning.task import Task


def load_fitting(task: Task, name: str | Path, *, what: str) -> PreTrainedModel:
    """A saved model of a task, with a trained head and all of the task's tokens.

    Args:
        task: The task.
        name: The model's folder, or its name on the hub.
        what: What it is meant to be, for messages.

    Raises:
        UserError: It cannot be loaded, its folder lacks weights that it has, or it has fewer tokens.
    """
    model: PreTrainedModel = load_saved(task.load_model, name, what=what)
    if unread := unread_weights(model):
        more = f" and {len(unread) - 1} more" if unread[1:] else ""
        raise UserError(
            f"{what} {str(name)!r} is not fine-tuned for this task: it has no {unread[0]!r}{more}, which would be "
            "random. Give the folder of a model that is, as `fit --strategy dense` leaves it."
        )
    if task.tokenizer is None:
        return model
    embeddings: Any = model.get_input_embeddings()
    rows, tokens = embeddings.weight.shape[0], len(task.tokenizer)
    if rows <= max(given_tokens(model, task.tokenizer).values()):
        raise UserError(
            f"{what} {str(name)!r} has {rows} tokens, and the task's tokenizer {tokens}: it is of another "
            "vocabulary, for example trimmed by `compact --vocabulary`. Give a model of the same, or give the folder, "
            "with its own tokenizer, as --task.model."
        )
    return model


def unread_weights(model: PreTrainedModel) -> list[str]:
    """Weights that `from_pretrained` did not find, and has drawn at random; computed ones, as of positions, are not.

    Args:
        model: A model as it was loaded.
    """
    # transformers' mark of what it has read; one that was loaded in another way has no marks at all.
    read = {name: getattr(value, "_is_hf_initialized", False) for name, value in model.named_parameters()}
    if not any(read.values()):
        return []
    never_saved = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return [
        name
        for name, there in read.items()
        if not there
        and not any(pattern.search(name) for pattern in never_saved)
        and not hasattr(model.get_submodule(name.rpartition(".")[0]), "create_weight")  # sines and cosines
    ]


def given_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens of a tokenizer that a model may be given, with their numbers.

    Args:
        model: The model.
        tokenizer: The tokenizer; what it masks with is given to masked language models only.
    """
    unused = None if type(model).__name__.endswith("ForMaskedLM") else tokenizer.mask_token
    return {token: number for token, number in tokenizer.get_vocab().items() if token != unused}
