"""The files next to exported graphs that other programs need: configuration, tokenizer, pooling."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PretrainedConfig

from bplightning.io.files import copy_file, copy_folder

COPIED = (
    "generation_config.json",
    "task.json",
    "*tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*processor_config.json",
    "modules.json",
    "*sentence*.json",
    "*_Pooling/config.json",
    "*_Normalize",
    "*_Dense",
)
"""Files needed to make inputs and to read outputs, without the model's weights; the last are those of
sentence-transformers, whose projections have weights of their own."""

OURS = ("compaction", "quantization_config")
"""Fields of a compact model's configuration that say how torch loads it. Other readers take them for their own."""


def copy_companions(folder: Path, out: Path, config: PretrainedConfig) -> None:
    """Copy what a model needs besides its weights, with a configuration that any reader takes.

    Args:
        folder: The model's folder.
        out: The folder of the exported model.
        config: The model's configuration.
    """
    for pattern in COPIED:
        for file in sorted(folder.glob(pattern)):
            if file.is_dir():
                copy_folder(file, out / file.name)
            else:
                target = out / file.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                copy_file(file, target)
    text = (folder / "config.json").read_text(encoding="utf-8")
    (out / "config.json").write_text(json.dumps(ordinary(json.loads(text), config), indent=2) + "\n", encoding="utf-8")


def ordinary(saved: dict[str, object], config: PretrainedConfig) -> dict[str, object]:
    """A configuration without fields of ours, and with the names of all labels.

    Args:
        saved: Content of config.json.
        config: The same, as transformers reads it: it leaves default names of labels out of the file.

    >>> from transformers import BertConfig
    >>> ordinary({"model_type": "bert", "compaction": {"version": 1}}, BertConfig(num_labels=2))
    {'model_type': 'bert', 'id2label': {0: 'LABEL_0', 1: 'LABEL_1'}, 'label2id': {'LABEL_0': 0, 'LABEL_1': 1}}
    """
    labels = {"id2label": config.id2label, "label2id": config.label2id}
    return {name: value for name, value in saved.items() if name not in OURS} | labels
