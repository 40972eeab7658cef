"""A few examples, a tokenizer without training, and the windows of both."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, BertTokenizer

from bplightning.tasks.squad.data import from_records
from bplightning.tasks.squad.features import tokenize

NILE = "The Nile is 6650 km long. It flows north, through Egypt, to the Mediterranean Sea; the Amazon flows east."
CAFE = "In the café “Zoë” 🎉 they serve naïve crêpes and  straße tea, all day."
WORDS = (
    "the",
    "nile",
    "is",
    "long",
    "it",
    "flows",
    "north",
    "to",
    "mediterranean",
    "sea",
    "where",
    "what",
    "does",
    "they",
)


def example(name: str, context: str, question: str, *texts: str) -> dict[str, Any]:
    """A flat example whose answers are found by search."""
    answers = {"text": list(texts), "answer_start": [context.index(text) for text in texts]}
    return {"id": name, "title": "Tea", "context": context, "question": question, "answers": answers}


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer without any training."""
    letters = [*string.ascii_lowercase, *string.digits, "ß"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.punctuation, *letters]
    pieces += [f"##{letter}" for letter in letters]
    BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}).save_pretrained(folder)


def windows_of(rows: list[dict[str, Any]], tokenizer: str, cache: Path) -> tuple[Dataset, Dataset]:
    table = from_records(rows, origin="test")
    settings: dict[str, Any] = {"max_length": 32, "stride": 4, "cache_dir": str(cache), "description": "Tokenizing"}
    return table, tokenize(table, tokenizer=AutoTokenizer.from_pretrained(tokenizer), may_lack_answers=True, **settings)
