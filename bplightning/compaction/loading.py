"""Saving a compact model, and loading it with transformers' own `from_pretrained`.

A compact folder is an ordinary transformers folder, whose configuration says in a field of its own what was taken away
(`bplightning.compaction.compact_config`). ``quantization_config`` names us, no more: that is the slot by which
transformers lets a third party change modules before weights load. After loading, nothing of a quantizer is left on
the model.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils import PushToHubMixin
from transformers.utils.quantization_config import QuantizationConfigMixin

from bplightning.compaction.compact_config import QUANT_METHOD, apply_widths
from bplightning.compaction.equivalence import LogitDifference, require_equal
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.untrusted_folder import (
    numbers_in,
    own_parameters,
    require_own_weights,
    require_plausible_layers,
    require_plausible_size,
)
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Precisions a compact model can be saved in, by name."""

UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(EOFError, pickle.UnpicklingError, SafetensorError, StrictDataclassError),
)
"""What transformers and torch raise at a folder that is damaged, forged, or none of a model."""

PLAN_FILE = "compaction_plan.json"
"""The plan, beside the weights."""


def save_compact(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PushToHubMixin | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    complete: Callable[[Path], None] | None = None,
) -> LogitDifference:
    """Save a compact model as a transformers folder, proved by loading it again.

    The folder appears whole or not at all.

    Args:
        model: The compact model.
        folder: Where to save; it must not exist yet, or be empty.
        tokenizer: Tokenizer or image processor, saved beside the model.
        inputs: What the saved and the reloaded model are compared on; by default seeded random tokens with padding.
        complete: Writes what else belongs into the folder, before that appears.

    Returns:
        The largest difference between the logits of `model` and of the reloaded model.

    Raises:
        UserError: The folder holds files already, or the reloaded model's logits differ.
    """
    register()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"cannot save to {str(folder)!r}, which exists and is not an empty folder: name another one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unproved = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(unproved)
        if tokenizer is not None:
            tokenizer.save_pretrained(unproved)
        plan = getattr(model, "compaction_plan", None)
        if plan is not None:
            (unproved / PLAN_FILE).write_text(plan.to_json())
        reloaded: nn.Module = type(model).from_pretrained(unproved)
        reloaded.to(model.device)
        inputs = comparison_inputs(model) if inputs is None else inputs
        difference = require_equal(model, reloaded, inputs, what="the reloaded model")
        if complete is not None:
            complete(unproved)
        unproved.chmod(0o777 & ~_umask())  # a temporary folder is its owner's alone
        if folder.exists():
            folder.rmdir()
        os.rename(unproved, folder)
    except BaseException as error:
        shutil.rmtree(unproved, ignore_errors=True)
        if isinstance(error, SafetensorError):  # how a full disk comes out of safetensors
            raise UserError(f"cannot save to {str(folder)!r}: {error}. Make room, or name another place.") from error
        raise
    return difference


def load_saved(load: Callable[[Any], Any], folder: str | Path, *, what: str) -> Any:
    """Read a model with a reader such as `from_pretrained`; that it cannot be read is said in one line.

    Args:
        load: From a folder, or a name of the hub, to what is read.
        folder: What to read.
        what: What it is meant to be, for the message, for example ``"the baseline"``.

    Raises:
        UserError: It is missing, truncated, no model, or its weights are not of the shapes its configuration says.
    """
    try:
        require_own_weights(Path(folder))
        require_plausible_layers(Path(folder))
        return load(folder)
    except UserError as error:
        raise UserError(f"{what} {str(folder)!r} cannot be loaded: {error}") from error
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if isinstance(error, StrictDataclassError):  # the rule stands in its second line
            reason = " ".join(str(error).split())
        reason = reason[:300]  # it may quote the file
        rule = f"{type(error).__name__}: {reason}"
        if isinstance(error, SafetensorError):
            rule = f"its weights are truncated or damaged ({reason})"
        elif "ignore_mismatched_sizes" in reason:
            rule = "its weights are of other shapes than its config.json says, listed above"
        remedy = "give a folder that holds config.json and whole weights, as `save_pretrained` writes it"
        if not Path(folder).is_dir():
            remedy += (
                ", or a name of the Hugging Face hub, which needs the network once; a download that was cut short goes "
                "on when repeated"
            )
        raise UserError(f"{what} {str(folder)!r} cannot be loaded: {rule}: {remedy}.") from error


def register() -> None:
    """Make `from_pretrained` know compact folders; done by ``import bplightning``."""
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(CompactConfig)
        register_quantizer(QUANT_METHOD)(CompactLoader)


class CompactConfig(QuantizationConfigMixin):
    """What stands in a compact configuration's ``quantization_config``: our name.

    Args:
        quant_method: Our name.
        compacted: Whether the model is compact; one that has only been hardened may compute what no folder holds.

    Raises:
        UserError: It is not compact.
    """

    def __init__(self, quant_method: str = QUANT_METHOD, compacted: bool = True) -> None:
        if not compacted:
            raise UserError(
                "the model was saved hardened and not compact, and what it skips, narrows or routes around is not in "
                "its folder: compact it first, and save the compact model."
            )
        self.quant_method = quant_method  # type: ignore[assignment]


class CompactLoader(HfQuantizer):
    """Shrinks the modules before weights load. Not a quantizer; it only takes the slot of one while loading."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        numbers = numbers_in(checkpoint_files or ())
        apply_widths(model, numbers)
        require_plausible_size(sum(value.numel() for _, value in own_parameters(model)), numbers)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Leave an ordinary model: `half`, `float`, the Trainer and others refuse one that looks quantized."""
        _require_body(model)
        for name in ("hf_quantizer", "is_quantized", "quantization_method"):
            model.__dict__.pop(name, None)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config.__dict__.pop("_is_quantized", None)
        model.config.quantization_config = {"quant_method": QUANT_METHOD}  # for `save_pretrained`
        return model

    def is_serializable(self) -> bool:
        """Whether such a model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether such a model can be trained."""
        return True


def unread_weights(model: PreTrainedModel) -> list[str]:
    """Weights that `from_pretrained` did not find, and has drawn at random; computed ones, as of positions, are not.

    Args:
        model: A model as it was loaded.
    """
    read = {name: _was_read(value) for name, value in model.named_parameters()}  # none, if it was loaded otherwise
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


def _require_body(model: PreTrainedModel) -> None:
    """Refuse a file that lacks weights of layers or embeddings: transformers would draw them at random.

    Another head than the saved one is a common thing, and is left to transformers' own warning.
    """
    layout = PrunableLayout.of(model)
    inside = {_layer(member.module) for group in layout.groups for member in group.members}
    # Not those of a class of their own, of which some are computed and never saved.
    embeddings = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    body = {
        name
        for name, value in model.named_parameters()
        if id(value) in embeddings or any(name.startswith(f"{layer}.") for layer in inside)
    }
    missing = [name for name in unread_weights(model) if name in body]
    # Where nothing was found, the body has another name in the saved class (as Llama has it for questions).
    if missing and any(_was_read(model.get_parameter(name)) for name in body):
        raise UserError(
            f"the weights lack {missing[0]!r}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which the "
            "configuration has: the file is damaged, or of another model."
        )


def _was_read(value: nn.Parameter) -> bool:
    return getattr(value, "_is_hf_initialized", False)  # transformers' mark


def _layer(module: str) -> str:
    """Path of the layer that a module is in: up to the last number of it."""
    parts = module.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
    return ".".join(parts[: last + 1])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


register()  # whoever imports this first, which may be transformers' own import of what it needs
