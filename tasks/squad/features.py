"""From examples to what the model is fed: tokenized windows, batches, and the order they come in.

A context that does not fit in `max_length` tokens is cut into windows that overlap; each window is one feature.

Shapes: `C` context tokens of a window.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from bplightning.errors import UserError
from bplightning.tasks.shared.token_cache import tokenized, tokenizer_state
from bplightning.tasks.squad import data as squad_data
from bplightning.tasks.squad.data import check_answers

INTEGER = Value("int32")
# What batches hold in addition to the tokens. The second row is for finding answers, not for the model.
LABELS = ("start_positions", "end_positions")
POSITIONS = ("feature_index", "context_start", "context_end", "cls_index")
CHARACTERS = ("char_start_C", "char_end_C")
CHUNK = 1000
"""Examples tokenized at once."""


def tokenize(
    examples: Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
    may_lack_answers: bool = False,
    cache_dir: str | None,
    description: str,
) -> Dataset:
    """Cut examples into tokenized windows, behind a progress bar; a second call reads the result from disk.

    Args:
        examples: Columns as `squad_data.COLUMNS`.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a window, question and special tokens included.
        stride: Tokens that neighbouring windows share.
        may_lack_answers: Whether there may be examples without an answer.
        cache_dir: Folder for the result; `None` for the one of `datasets`.
        description: Text of the progress bar.

    Returns:
        One row a window: the tokens, `LABELS`, `POSITIONS`, ``example_index`` (row of `examples`), ``length`` (tokens)
        and ``char_start_C``, ``char_end_C`` (characters that each context token covers: first, and one past the last).

    Raises:
        UserError: If an answer is missing or not where it says, or a question leaves no room for its context.
    """
    settings = {"max_length": max_length, "stride": stride, "may_lack_answers": may_lack_answers}
    types = _types(tokenizer)
    beginning = tokenizer.cls_token_id, tokenizer.bos_token_id
    sources = [Path(file).read_text(encoding="utf-8") for file in (__file__, squad_data.__file__)]
    return tokenized(
        examples,
        _windows,
        depends_on=[tokenizer_state(tokenizer), beginning, list(types), settings, sources],
        index="feature_index",
        cache_dir=cache_dir,
        description=description,
        with_indices=True,
        batch_size=CHUNK,
        fn_kwargs=settings | {"tokenizer": tokenizer},
        features=types,
    )


def tokenize_inputs(examples: Dataset, *, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Dataset:
    """Cut examples to answer into tokenized windows as `tokenize` does, in memory: quietly, and with no file left.

    Args:
        examples: Columns as `squad_data.COLUMNS`, without answers.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a window, question and special tokens included.
        stride: Tokens that neighbouring windows share.

    Returns:
        As from `tokenize`, with labels that mean nothing.

    Raises:
        UserError: If a question leaves no room for its context.
    """
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_length": max_length,
        "stride": stride,
        "may_lack_answers": True,
    }
    chunks = [range(len(examples))[first : first + CHUNK] for first in range(0, len(examples), CHUNK)]
    parts = [
        Dataset.from_dict(_windows(examples[chunk], list(chunk), **settings), features=_types(tokenizer))
        for chunk in chunks
    ]
    features = concatenate_datasets(parts)
    return features.add_column("feature_index", np.arange(len(features)))


def _types(tokenizer: PreTrainedTokenizerBase) -> Features:
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]  # the collator makes the mask
    types = {name: List(INTEGER) for name in names} | dict.fromkeys((*LABELS, *POSITIONS[1:]), INTEGER)
    types |= {"example_index": INTEGER, "length": INTEGER} | dict.fromkeys(CHARACTERS, List(INTEGER))
    return Features(types)


def _windows(
    batch: dict[str, list[Any]],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
    may_lack_answers: bool,
) -> dict[str, list[Any]]:
    """The windows of a batch of examples, column by column."""
    questions = [question.strip() for question in batch["question"]]
    room = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True)
    lengths = (len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"])
    for name, context, answers, length in zip(batch["id"], batch["context"], batch["answers"], lengths, strict=True):
        check_answers(name=name, context=context, answers=answers, may_lack=may_lack_answers)
        if length >= room:
            raise UserError(
                f"The question of example {name!r} has {length} tokens, and with max_length {max_length} and stride "
                f"{stride} it must have less than {room}: raise max_length, lower stride, or remove the example."
            )
    # The question comes first whatever the tokenizer's padding side: a causal model must read it before the context.
    encoding = tokenizer(
        questions,
        batch["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    rows = encoding.pop("overflow_to_sample_mapping")
    offsets = encoding.pop("offset_mapping")
    columns: dict[str, list[Any]] = dict(encoding)
    columns["example_index"] = [indices[row] for row in rows]
    columns["length"] = [len(ids) for ids in encoding["input_ids"]]
    for name in (*LABELS, *POSITIONS[1:], *CHARACTERS):
        columns[name] = []
    for window, row in enumerate(rows):
        of_context = [token for token, part in enumerate(encoding.sequence_ids(window)) if part == 1]
        first, last = (of_context[0], of_context[-1] + 1) if of_context else (0, 0)
        char_start_C = [characters[0] for characters in offsets[window][first:last]]
        char_end_C = [characters[1] for characters in offsets[window][first:last]]
        cls, answers, span = _cls_index(encoding["input_ids"][window], tokenizer=tokenizer), batch["answers"][row], None
        if answers["text"]:
            text, answer_start = answers["text"][0], answers["answer_start"][0]
            span = find_span(char_start_C=char_start_C, char_end_C=char_end_C, text=text, answer_start=answer_start)
        # As in BERT, a window without the answer points at CLS.
        start, end = (cls, cls) if span is None else (first + span[0], first + span[1])
        values = (start, end, first, last, cls, char_start_C, char_end_C)
        for name, value in zip((*LABELS, *POSITIONS[1:], *CHARACTERS), values, strict=True):
            columns[name].append(value)
    return columns


def _cls_index(ids: list[int], *, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for no answer: CLS, or where there is none the beginning of the sequence."""
    for special in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if special in ids:
            return ids.index(special)
    return 0


def find_span(
    *, char_start_C: list[int], char_end_C: list[int], text: str, answer_start: int
) -> tuple[int, int] | None:
    """The tokens of a window's context that hold an answer.

    Args:
        char_start_C: First character that each token covers, ascending.
        char_end_C: One past the last character that each token covers.
        text: The answer; blanks around it are no part of it.
        answer_start: Characters from the start of the context to `text`.

    Returns:
        First and last token, both counted from the window's first context token, or `None` where the window does not
        hold the whole answer.

    >>> find_span(char_start_C=[0, 4, 9], char_end_C=[3, 9, 10], text="quick", answer_start=4)
    (1, 1)
    >>> find_span(char_start_C=[0, 4, 9], char_end_C=[3, 9, 10], text="quick. Brown", answer_start=4) is None
    True
    """
    stripped = text.lstrip()
    first = answer_start + len(text) - len(stripped)
    last = first + len(stripped.rstrip())
    if not char_start_C or char_start_C[0] > first or char_end_C[-1] < last:
        return None
    start, end = bisect_right(char_end_C, first), bisect_left(char_start_C, last) - 1
    return (start, end) if start <= end else None  # the other case: a tokenizer that drops the answer's characters
