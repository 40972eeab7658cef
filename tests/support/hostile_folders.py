"""Folders as a stranger may give them: each tries to run code of its own, which writes a file, the canary."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

CANARY = "BPLIGHTNING_CANARY"
"""The variable that names the canary's file."""

MODULE = "hostile_code"
"""The module next to a hostile folder's files, and in the current folder."""

CODE = f"""
import os, pathlib
pathlib.Path(os.environ[{CANARY!r}]).write_text(__file__)
class Anything:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, *args, **kwargs): pass
    from_pretrained = classmethod(lambda cls, *args, **kwargs: cls())
"""

SECTIONS: dict[str, Any] = {
    "task": {"task": f"{MODULE}.Anything"},
    "task, in full": {"task": {"class_path": f"{MODULE}.Anything", "init_args": {}}},
    "strategy": {"strategy": {"class_path": f"{MODULE}.Anything"}},
    "strategy, flat": {"strategy.class_path": f"{MODULE}.Anything"},
    "an option of the strategy": {
        "strategy": {"class_path": "hybrid", "init_args": {"target": {"class_path": f"{MODULE}.Anything"}}}
    },
    "callbacks": {"trainer": {"callbacks": [{"class_path": f"{MODULE}.Anything"}]}},
    "a callback's function": {
        "trainer": {
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                    "init_args": {"on_fit_start": f"{MODULE}.Anything"},
                }
            ]
        }
    },
    "logger": {"trainer": {"logger": {"class_path": f"{MODULE}.Anything"}}},
    "logger, by name": {"trainer": {"logger": f"{MODULE}.Anything"}},
    "Lightning's strategy": {"trainer": {"strategy": {"class_path": f"{MODULE}.Anything"}}},
    "plugins": {"trainer": {"plugins": [{"class_path": f"{MODULE}.Anything"}]}},
    "profiler": {"trainer": {"profiler": {"class_path": f"{MODULE}.Anything"}}},
    "accelerator": {"trainer": {"accelerator": {"class_path": f"{MODULE}.Anything"}}},
    "refill": {"refill": {"class_path": f"{MODULE}.Anything"}},
}
"""What a configuration names that its file has no say in."""


class Pickled:
    """Writes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f'touch "${CANARY}"',)


def write_module(folder: Path) -> None:
    """Put the module into a folder, and some whose names Python or a library looks for."""
    for name in (MODULE, "sitecustomize", "usercustomize", "wandb", "kernels"):
        (folder / f"{name}.py").write_text(CODE)


def run_that_names(folder: Path, settings: dict[str, Any]) -> Path:
    """A run's folder whose configuration has these settings, with a pickle in the place of its checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    write_module(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save({"state_dict": {}, "code": Pickled()}, folder / "checkpoints" / "last.ckpt")
    return folder


def edited(folder: Path, file: str, **fields: Any) -> None:
    """Set fields of a JSON file, which need not be there."""
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | fields))


def _own_code(folder: Path, *, known: bool) -> None:
    """All parts of a folder ask for code of their own; its type of model may be one that transformers has."""
    write_module(folder)
    auto = f"{MODULE}.Anything"
    names = ("AutoConfig", "AutoModel", "AutoModelForQuestionAnswering", "AutoModelForSequenceClassification")
    kind: dict[str, Any] = {} if known else {"model_type": "its_own", "architectures": ["Anything"]}
    edited(folder, "config.json", auto_map=dict.fromkeys(names, auto), **kind)
    edited(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": [auto, auto]}, tokenizer_class="Anything")
    for name in ("processor_config.json", "preprocessor_config.json"):
        edited(folder, name, auto_map={"AutoProcessor": auto, "AutoImageProcessor": auto}, processor_class="Anything")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE)


def _pickled_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Pickled()}, folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    edited(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="its/base", auto_mapping={})
    torch.save({"weight": Pickled()}, folder / "adapter_model.bin")


MODELS: dict[str, Callable[[Path], None]] = {
    "code of its own": lambda folder: _own_code(folder, known=False),
    "code of its own for a known type": lambda folder: _own_code(folder, known=True),
    "a pickle for weights": _pickled_weights,
    "an adapter": _adapter,
    "a kernel of the hub": lambda folder: edited(folder, "config.json", _attn_implementation="its/kernel"),
    "a quantizer": lambda folder: edited(folder, "config.json", quantization_config={"quant_method": "gptq"}),
    "a task of its own": lambda folder: edited(folder, "task.json", version=1, task=f"{MODULE}.Anything", settings={}),
}
"""What a stranger does to the folder of a model."""


def model_that(kind: str, model: Path, folder: Path) -> Path:
    """A copy of a model's folder with what `MODELS` calls so."""
    shutil.copytree(model, folder)
    MODELS[kind](folder)
    return folder
