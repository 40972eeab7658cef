"""The one gate through which every saved model, configuration, tokenizer and processor is read.

A folder may come from anywhere: `bplightning.compaction.saved_config` looks at what it says before anything is built,
no code of its own is run, and a model whose weights are not all there is refused, since transformers would draw them
at random.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from bplightning.compaction.compact_config import CONFIG_FIELD
from bplightning.compaction.saved_config import require_no_adapter, require_sound_config
from bplightning.compaction.untrusted_folder import (
    numbers_in,
    own_parameters,
    require_float_weights,
    require_own_weights,
    require_plausible_size,
)
from bplightning.errors import UserError

UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(AssertionError, AttributeError, ImportError, EOFError),
    *(pickle.UnpicklingError, SafetensorError, StrictDataclassError),
)
"""Exceptions of transformers and torch for a folder that is damaged, forged, or not of a model."""


def load_saved(load: Callable[[Any], Any], folder: str | Path, *, what: str, new_head: bool = False) -> Any:
    """Read a model with a function such as `from_pretrained`, with a one-line error if it cannot be read.

    Args:
        load: Reads a folder, or a name of the hub.
        folder: The folder or name.
        what: What it should be, for the message, for example ``"the baseline"``.
        new_head: Whether the weights of its head may be missing, as for a model that is to be fine-tuned.

    Raises:
        UserError: It is missing, truncated or no model, its configuration does not suit its weights, or weights are
            missing.
    """
    return _read(load, folder, what=what, check=partial(_require_whole, new_head=new_head), before=_require_weights)


def read_part(kind: Any, folder: str | Path, *, what: str, **arguments: Any) -> Any:
    """Read the configuration, the tokenizer or the processor of a model; code of its own is not run.

    Args:
        kind: A class with `from_pretrained`, such as `AutoTokenizer`.
        folder: Folder or name on the hub of the model.
        what: What it should be, for the message, for example ``"the tokenizer"``.
        **arguments: Further ones of `from_pretrained`.

    Raises:
        UserError: It cannot be read.
    """
    return _read(partial(kind.from_pretrained, trust_remote_code=False, **arguments), folder, what=what)


def _read(
    load: Callable[[Any], Any],
    folder: str | Path,
    *,
    what: str,
    before: Callable[[Path], None] = lambda _: None,
    check: Callable[[Any, Path], None] = lambda *_: None,
) -> Any:
    """Read something of a folder, with a one-line error."""
    try:
        require_own_weights(Path(folder))
        require_sound_config(Path(folder))
        before(Path(folder))
        found = load(folder)
        check(found, Path(folder))
        return found
    except UserError as error:
        if "cannot be loaded: " in str(error):  # a part of it, which was read within this
            raise
        raise UserError(f"{what} {str(folder)!r} cannot be loaded: {error}") from error
    except Exception as error:
        if not isinstance(error, UNREADABLE) and type(error) is not Exception:  # as tokenizers raises
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if isinstance(error, StrictDataclassError):  # the rule is in its second line
            reason = " ".join(str(error).split())
        reason = reason[:300]  # it may quote the file
        rule = f"{type(error).__name__}: {reason}"
        if isinstance(error, SafetensorError):
            rule = f"its weights are truncated or damaged ({reason})"
        elif "ignore_mismatched_sizes" in reason:
            rule = "its weights are of other shapes than its config.json gives, listed above"
        elif "custom code" in reason:
            rule = "it asks for code of its own (auto_map), and code in a folder is not run"
        remedy = "give a folder that holds config.json and complete weights, as `save_pretrained` writes it"
        if not Path(folder).is_dir():
            remedy += (
                ", or a name of the Hugging Face hub, which needs the network once; an interrupted download continues "
                "when repeated"
            )
        raise UserError(f"{what} {str(folder)!r} cannot be loaded: {rule}: {remedy}.") from error


def class_saved(config: Any, path: str) -> Any:
    """The transformers class that a model was saved from.

    Args:
        config: Its configuration.
        path: Its folder or name, for the message.

    Raises:
        UserError: transformers has no such class.
    """
    name = (config.architectures or ["none"])[0]
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        raise UserError(
            f"the model {path!r} is of class {str(name)[:80]!r} by its config.json, which transformers does not have: "
            "give a folder written by `save_pretrained`."
        )
    return found


def _require_weights(folder: Path) -> None:
    """Refuse weights that are quantized, and a model that would be far larger than they are, before memory is taken.

    A compact one is checked by its own loader.
    """
    require_float_weights(folder)
    numbers = numbers_in(folder.glob("*.safetensors"))
    if not numbers:
        return
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, CONFIG_FIELD, None) is not None:
        return
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModel.from_config(config, trust_remote_code=False)
    except UNREADABLE:  # such as a part of a model that has no class of its own
        return
    require_plausible_size(sum(value.numel() for _, value in own_parameters(model)), numbers)


# -- whether all weights were there ------------------------------------------------------------------------------------


def _require_whole(model: Any, folder: Path, *, new_head: bool) -> None:
    """Refuse a model that has an adapter, or lacks weights."""
    loaded = model[0] if isinstance(model, tuple) else model  # `from_pretrained` may tell more
    if not isinstance(loaded, PreTrainedModel):
        return
    require_no_adapter(loaded)
    if not any(map(was_read, loaded.parameters())):
        _require_common_names(loaded, folder)
    missing = unread_weights(loaded)
    body = [name for name in missing if in_body(loaded, name)]
    if body or (missing and not new_head):
        first = (body or missing)[0]
        more = f" and {len(body or missing) - 1} more" if (body or missing)[1:] else ""
        kind = "of its layers" if body else "of its head"
        raise UserError(
            f"its weights lack {first!r}{more}, {kind}, which would be random: the file is damaged, or of another "
            f"model{'' if body else ', or the model is not fine-tuned for this task'}"
        )


def _require_common_names(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a model for which `from_pretrained` has found nothing; one may also be read by other ways."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    if names and names.isdisjoint(model.state_dict()):
        raise UserError(
            f"none of its {len(names)} weights, such as {min(names)[:80]!r}, has a name that a "
            f"{type(model).__name__} knows: they are of another model"
        )


def in_body(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight is of the model without its head: its embeddings and layers.

    Args:
        model: The model.
        name: Name of the weight.
    """
    top = name.partition(".")[0]
    if "pooler" in name:  # a language model has none, and a classifier makes one
        return False
    if top == model.base_model_prefix:
        return True
    child = getattr(model, top, None)
    return isinstance(child, nn.Embedding) or (
        isinstance(child, nn.Module) and any(isinstance(part, nn.ModuleList) for part in child.modules())
    )


def unread_weights(model: PreTrainedModel) -> list[str]:
    """Weights that `from_pretrained` did not find and initialized at random; not those that are computed.

    Args:
        model: A model, as loaded.
    """
    read = {name: was_read(value) for name, value in model.named_parameters()}  # none, if it was read by other ways
    if not any(read.values()):
        return []
    never_saved = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return [
        name
        for name, there in read.items()
        if not there
        and not any(pattern.search(name) for pattern in never_saved)
        and not hasattr(model.get_submodule(name.rpartition(".")[0]), "create_weight")  # sines and cosines
    ]


def was_read(value: nn.Parameter) -> bool:
    """Whether `from_pretrained` has read a weight from a file: transformers' mark.

    Args:
        value: The weight.
    """
    return getattr(value, "_is_hf_initialized", False)
