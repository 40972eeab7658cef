"""What a saved model's config.json may say, checked before anything is built from it.

A folder may come from anywhere. First comes what the model is: an architecture that transformers has, with weights of
its own that are not quantized, by transformers' own code. Then come the numbers, bounded by the weights in the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from bplightning.compaction.compact_config import QUANT_METHOD
from bplightning.compaction.untrusted_folder import ALWAYS, shapes_in
from bplightning.errors import UserError

ADAPTER_FILE = "adapter_config.json"
"""The file by which peft knows an adapter."""

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations of attention that come with transformers and torch; by other names it looks for kernels to download.
"""

ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Where a configuration names one."""

SMALL = 1 << 16
"""What any number of a configuration may be, whatever the weights are."""

LARGE = 1 << 24
"""What a number may be that is no size of a weight: a length, a window, a distance."""

TIMES = 16
"""How many times the largest dimension of a weight a size may be: the shapes are compared exactly when weights load."""

_COUNTED = re.compile(r"layer|experts")
_NO_SIZE = re.compile(r"window|length|distance|seed|token_id|index|original_max_position")


def require_sound_config(folder: Path) -> None:
    """Refuse a folder whose configuration asks for what is not run, or for more than its weights can fill.

    Args:
        folder: Folder of a saved model. What is missing or no JSON is left to the code that loads it.

    Raises:
        UserError: It does; the message names the field, its value and the rule.
    """
    if (folder / ADAPTER_FILE).is_file():
        raise _adapter()
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(config, dict):
        raise UserError(f"its config.json holds a {type(config).__name__}, and must hold names and values")
    _require_known_type(config)
    for part in _parts(config):
        _require_known_methods(part)
        _require_labels(part)
        _require_padding(part)
    _require_plausible_numbers(config, folder)


def require_no_adapter(model: Any) -> None:
    """Refuse a model into which transformers has loaded an adapter, as of a name on the hub.

    Args:
        model: A model, as loaded.

    Raises:
        UserError: It has one.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter()


def _adapter() -> UserError:
    return UserError(
        f"it holds an adapter ({ADAPTER_FILE}), and is no whole model: merge it into its model with peft's "
        "`merge_and_unload()`, save that with `save_pretrained`, and give the new folder"
    )


def _require_known_type(config: Mapping[str, Any]) -> None:
    """Refuse an architecture that transformers has no code for."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if config.get("auto_map"):
        raise UserError(
            f"it asks for code of its own (auto_map in config.json, for the model_type {_shown(kind)}), and code in a "
            "folder is not run: give a model of an architecture that transformers has"
        )
    if kind is not None:
        raise UserError(
            f"its config.json has model_type {_shown(kind)}, which this version of transformers does not know: give a "
            "model of an architecture that it has"
        )


def _require_known_methods(part: Mapping[str, Any]) -> None:
    """Refuse weights that are not plain, and code that transformers would look for elsewhere."""
    for field in ("quantization_config", "compression_config"):
        given = part.get(field)
        method = given.get("quant_method") if isinstance(given, dict) else given
        if given is not None and method != QUANT_METHOD:
            raise UserError(
                f"its config.json has a {field} of {_shown(method)}, and quantized weights are not read: give the "
                "model before quantization"
            )
    for field, value in part.items():
        if field in ATTENTION_FIELDS and value not in (None, True, False, *ATTENTION):
            raise UserError(
                f"its config.json has {field} {_shown(value)}, and it must be one of {', '.join(ATTENTION)}: take it "
                "out"
            )
        if field in ("dtype", "torch_dtype") and not (value in (None, "auto") or _is_float(value)):
            raise UserError(
                f"its config.json has {field} {_shown(value)}, and weights are read as float32, float16 or bfloat16"
            )


def _is_float(name: Any) -> bool:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    return isinstance(found, torch.dtype) and found.is_floating_point


def _require_labels(part: Mapping[str, Any]) -> None:
    for field, numbers_first, example in (("id2label", True, '{"0": "no"}'), ("label2id", False, '{"no": 0}')):
        given = part.get(field)
        if given is None:
            continue
        pairs = given.items() if isinstance(given, dict) else [(None, None)]
        ordered = pairs if numbers_first else [(number, label) for label, number in pairs]
        if not all(_is_number(number) and isinstance(label, str) for number, label in ordered):
            raise UserError(
                f"its config.json has {field} {_shown(given)}, and it must have numbers and labels, such as {example}"
            )


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and value.isdecimal() and len(value) < 10)


def _require_padding(part: Mapping[str, Any]) -> None:
    tokens, pad = part.get("vocab_size"), part.get("pad_token_id")
    if type(tokens) is int and type(pad) is int and not -1 <= pad < tokens:
        raise UserError(f"its config.json has pad_token_id {pad}, and with its vocab_size it must be 0 to {tokens - 1}")


def _require_plausible_numbers(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse numbers that nothing in the weights explains, before anything is counted up to them."""
    numbers = list(_numbers(config, PreTrainedConfig))
    if all(0 <= value <= ALWAYS for _, value, _ in numbers):
        return
    shapes = list(shapes_in(folder)) or [[LARGE // TIMES]]  # another format tells nothing before it is read
    largest = max(max(shape, default=0) for shape in shapes)
    stacked = max((shape[0] for shape in shapes if len(shape) > 2 and 0 not in shape), default=0)
    for key, value, rotary in numbers:
        lowest, allowed = -1, max(SMALL, TIMES * largest)
        if _COUNTED.search(key):
            lowest, allowed = 0, max(ALWAYS, len(shapes), stacked if "experts" in key else 0)
        elif key == "num_labels":
            lowest, allowed = 0, max(SMALL, largest)
        elif _NO_SIZE.search(key) or (rotary and "position" in key):
            lowest, allowed = -LARGE, max(LARGE, TIMES * largest)
        if not lowest <= value <= allowed:
            raise UserError(
                f"config.json has {key} {_shown(value)}, but with the folder's weights it must be {lowest} to {allowed}"
            )


def _numbers(part: Any, kind: type[PreTrainedConfig], key: str = "") -> Iterator[tuple[str, int, bool]]:
    """Each whole number that is read, also in lists and nested: its key, itself, and whether positions are computed.

    What the class of a configuration does not know is read by nobody.
    """
    if isinstance(part, dict):
        named = part.get("model_type")
        if isinstance(named, str) and named in CONFIG_MAPPING:
            kind = CONFIG_MAPPING[named]
        fields = {*kind.__dataclass_fields__, *kind.attribute_map, "num_labels"}
        for name, value in part.items():
            if key.endswith(("parameters", "scaling")) or name in fields or name.endswith("config"):
                yield from _numbers(value, kind, name)
    elif isinstance(part, list):
        for value in part:
            yield from _numbers(value, kind, key)
    elif type(part) is int and "theta" not in key:
        yield key, part, "rope_parameters" in kind.__dataclass_fields__


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those inside it."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("config"):
            yield from _parts(value)


def _shown(value: object) -> str:
    return repr(value)[:80]
