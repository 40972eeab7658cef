"""Loading a fine-tuned model for a task: a baseline, a teacher, or a model to evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bplightning.compaction.saved_models import load_saved, unread_weights
from bplightning.contracts.task import Task
from bplightning.errors import UserError


def load_fitting(task: Task, name: str | Path, *, what: str) -> PreTrainedModel:
    """A saved model of a task, with a trained head and all of the task's tokens.

    Args:
        task: The task.
        name: The model's folder, or its name on the hub.
        what: What it should be, for messages.

    Raises:
        UserError: It cannot be loaded, its folder lacks some of its weights, or it has fewer tokens than the task.
    """
    model: PreTrainedModel = load_saved(task.load_model, name, what=what, new_head=True)
    if unread := unread_weights(model):
        more = f" and {len(unread) - 1} more" if unread[1:] else ""
        raise UserError(
            f"{what} {str(name)!r} is not fine-tuned for this task: it has no {unread[0]!r}{more}, which would be "
            "random. Give the folder of a fine-tuned model, such as `fit --strategy dense` writes."
        )
    if task.tokenizer is None:
        return model
    embeddings: Any = model.get_input_embeddings()
    rows, tokens = embeddings.weight.shape[0], len(task.tokenizer)
    if rows <= max(given_tokens(model, task.tokenizer).values()):
        raise UserError(
            f"{what} {str(name)!r} has {rows} tokens, but the task's tokenizer {tokens}: it has another vocabulary, "
            "for example trimmed by `compact --vocabulary`. Give a model with the same vocabulary, or give the folder, "
            "with its own tokenizer, as --task.model."
        )
    return model


def require_embedded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str | Path) -> None:
    """Refuse a model whose own tokenizer has ids for which it has no embeddings.

    Args:
        model: The model.
        tokenizer: The tokenizer of its folder.
        name: The folder, or its name on the hub.

    Raises:
        UserError: There is one.
    """
    embeddings: Any = model.get_input_embeddings()
    tokens, rows = given_tokens(model, tokenizer), embeddings.weight.shape[0]
    first = min((token for token, number in tokens.items() if number >= rows), key=tokens.__getitem__, default=None)
    if first is not None:
        raise UserError(
            f"the model {str(name)!r} has embeddings for {rows} tokens, but its tokenizer has the id "
            f"{tokens[first]}, for {first[:80]!r}: they are of different models; give a folder with both as "
            "`save_pretrained` wrote them, or call model.resize_token_embeddings."
        )


def given_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens of a tokenizer that a model may get, with their ids.

    Args:
        model: The model.
        tokenizer: The tokenizer; only masked language models get its mask token.
    """
    unused = None if type(model).__name__.endswith("ForMaskedLM") else tokenizer.mask_token
    return {token: number for token, number in tokenizer.get_vocab().items() if token != unused}
