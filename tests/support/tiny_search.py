"""A few questions and passages, and the tasks for search on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_texts import write

from bplightning.tasks.reranking import Reranking
from bplightning.tasks.sentence_embedding import SentenceEmbedding

PAIRS = [
    {"text": "where does the nile flow", "text_pair": "the nile flows north to the sea"},
    {"text": "what is long", "text_pair": "the nile is long"},
    {"text": "is it the sea", "text_pair": "it is the mediterranean sea"},
    {"text": "what does it", "text_pair": "they flows where it flows"},
]
SCORED = [pair | {"score": score} for pair, score in zip(PAIRS, (0.9, 0.4, 0.1, -0.5), strict=True)]
TEXTS = [{"text": pair["text"]} for pair in PAIRS]
TAUGHT = [text | {"embedding": [float(row == place) for place in range(16)]} for row, text in enumerate(TEXTS)]


def embedder(model: str, folder: Path, train: Any, validation: Any = None, **options: Any) -> SentenceEmbedding:
    """The task on files; `validation` is `train` where it is not said, `train` may be left out."""
    return SentenceEmbedding(**_arguments(model, folder, train, validation, options))


def reranker(model: str, folder: Path, train: Any, validation: Any = None, **options: Any) -> Reranking:
    """The task of rerankers on files, in the same way."""
    return Reranking(**_arguments(model, folder, train, validation, options))


def _arguments(model: str, folder: Path, train: Any, validation: Any, options: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = {"validation_file": write(folder / "validation.jsonl", validation or train)}
    if train is not None:
        files["train_file"] = write(folder / "train.jsonl", train)
    sizes = {"batch_size": 4, "eval_batch_size": 4, "max_length": 32}
    return {"model": model, "cache_dir": str(folder / "cache")} | files | sizes | options
