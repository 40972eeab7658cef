"""Tokenized data on disk, named by all that it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from datasets import Dataset
from datasets import config as datasets_config
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase


def tokenized(
    examples: Dataset,
    encode: Callable[..., dict[str, list[Any]]],
    *,
    depends_on: Any,
    index: str,
    cache_dir: str | None,
    description: str,
    **map_arguments: Any,
) -> Dataset:
    """Tokenize, behind a progress bar; a second call, in this process or another, reads the result from disk.

    Args:
        examples: The examples.
        encode: From a batch of examples to their columns, as `Dataset.map` calls it.
        depends_on: What the result depends on apart from the examples and the version of the tokenizers.
        index: Name of a column to add, in which rows are numbered.
        cache_dir: Folder for the result; `None` for the one of `datasets`.
        description: Text of the progress bar.
        **map_arguments: Passed on to `Dataset.map`.
    """
    fingerprint = Hasher.hash([examples._fingerprint, depends_on, tokenizers.__version__])
    folder = Path(cache_dir or datasets_config.HF_DATASETS_CACHE) / "bplightning"
    folder.mkdir(parents=True, exist_ok=True)
    features = examples.map(
        encode,
        batched=True,
        remove_columns=examples.column_names,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc=description,
        **map_arguments,
    )
    return features.add_column(index, np.arange(len(features)))


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What a tokenizer makes of a text depends on this; the traces of its last use are left out.

    Args:
        tokenizer: A fast tokenizer.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return [backend, special, tokenizer.model_input_names, tokenizer.truncation_side]
