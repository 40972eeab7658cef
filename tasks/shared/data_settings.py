"""The data a model was measured on, as a report records it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def data_settings(dataset: str | None, dataset_config: str | None, validation: str | None) -> dict[str, Any]:
    """The settings that `Task.data_settings` asks for.

    Args:
        dataset: Name of a data set on the hub, or a folder in its layout.
        dataset_config: Its configuration.
        validation: File or folder of the validation set; `None` where `dataset` is given, or for the embedded set.
    """
    local = dataset is not None and Path(dataset).is_dir()
    named = dataset or validation
    file = Path(validation) if validation else None
    return {
        "dataset": None if local else dataset,
        "dataset_config": dataset_config,
        "validation": "embedded" if named is None else Path(named).name if local or validation else named,
        "validation_hash": _hash(file) if file is not None and file.is_file() else None,
    }


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
