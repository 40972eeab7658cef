"""What the tests of the question-answering task share: a few examples and a tiny random BERT."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizer

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


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Four examples of two passages; the passages need several windows of 32 tokens."""
    return [
        example("nile-1", NILE, "Where does the Nile flow?", "the Mediterranean Sea", "Mediterranean Sea"),
        example("nile-2", NILE, "How long is the Nile?", "6650 km"),
        example("cafe-1", CAFE, "What do they serve?", "naïve crêpes", "crêpes"),
        example("cafe-2", CAFE, "What tea?", "straße"),
    ]


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of one layer with a tokenizer that knows a few words and spells the others."""
    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForQuestionAnswering(BertConfig(vocab_size=512, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer without any training."""
    letters = [*string.ascii_lowercase, *string.digits, "ß"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.punctuation, *letters]
    pieces += [f"##{letter}" for letter in letters]
    BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}).save_pretrained(folder)
