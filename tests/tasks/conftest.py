"""What the tests of the question-answering task share: a few examples and a tiny random BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_squad import CAFE, NILE, example, save_tokenizer, windows_of
from transformers import BertConfig, BertForQuestionAnswering


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Four examples of two passages; the passages need several windows of 32 tokens."""
    return [
        example("nile-1", NILE, "Where does the Nile flow?", "the Mediterranean Sea", "Mediterranean Sea"),
        example("nile-2", NILE, "How long is the Nile?", "6650 km"),
        example("cafe-1", CAFE, "What do they serve?", "naïve crêpes", "crêpes"),
        example("cafe-2", CAFE, "What tea?", "straße"),
    ]


@pytest.fixture
def some_unanswerable(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, and two questions about the other passage, which has no answer to them."""
    return [
        *examples,
        example("cafe-3", CAFE, "Where does the Nile flow?"),
        example("nile-3", NILE, "What do they serve?"),
    ]


@pytest.fixture
def data(examples: list[dict[str, Any]], bert_folder: str, tmp_path: Path) -> tuple[Dataset, Dataset]:
    """The examples, and their windows of 32 tokens."""
    return windows_of(examples, bert_folder, tmp_path)


@pytest.fixture
def data_v2(some_unanswerable: list[dict[str, Any]], bert_folder: str, tmp_path: Path) -> tuple[Dataset, Dataset]:
    """The same where some have no answer."""
    return windows_of(some_unanswerable, bert_folder, tmp_path)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of one layer with a tokenizer that knows a few words and spells the others."""
    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForQuestionAnswering(BertConfig(vocab_size=512, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)
