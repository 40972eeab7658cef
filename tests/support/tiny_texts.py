"""A few sentences with labels of each kind, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from bplightning.tasks.classification import Classification

TEXTS = ("the nile is long", "the sea", "where does it flow", "what is north", "they flows", "is it the sea")
NAMES = ("long", "short", "long", "long", "short", "short")
SEVERAL = (["wet", "far"], ["wet"], [], ["far"], ["far", "wet"], [])
NUMBERS = (0.5, 3.25, 4.0, 1.75, 2.0, 5.0)


def rows(labels: Any, **columns: Any) -> list[dict[str, Any]]:
    """Records of the texts, with labels and further columns."""
    records = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    return [record | {name: values[row] for name, values in columns.items()} for row, record in enumerate(records)]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """A file of JSON lines, left as it is where it holds them already: a file written anew is read anew."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != lines:
        path.write_text(lines, encoding="utf-8")
    return str(path)


def make(model: str, folder: Path, train: Any, validation: Any = None, **options: Any) -> Classification:
    """The task on files; `validation` is `train` where it is not said, `train` may be left out."""
    files: dict[str, Any] = {"validation_file": write(folder / "validation.jsonl", validation or train)}
    if train is not None:
        files["train_file"] = write(folder / "train.jsonl", train)
    sizes = {"batch_size": 4, "eval_batch_size": 4, "max_length": 32}
    return Classification(**({"model": model, "cache_dir": str(folder / "cache")} | files | sizes | options))


def declared(records: list[dict[str, Any]], names: list[str]) -> Dataset:
    """A table whose labels are numbers with declared names, as on the hub."""
    columns = [name for name in records[0] if name != "label"]
    features = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=names)})
    return Dataset.from_list(records, features=features)


def hub_folder(folder: Path, splits: dict[str, dict[str, Dataset]]) -> str:
    """A local folder in the layout of a hub data set with configurations: configuration to split to table."""
    lines = ["---", "configs:"]
    for config, tables in splits.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, table in tables.items():
            file = f"{config}/{split}-00000-of-00001.parquet"
            (folder / config).mkdir(parents=True, exist_ok=True)
            table.to_parquet(folder / file)
            lines += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)
