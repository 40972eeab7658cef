"""Saving a compact model, and loading it with transformers' own `from_pretrained`.

A compact folder is an ordinary transformers folder. The widths stand in the configuration's own field ``compaction``,
by group name (stack, layer and role), never by module path; where attentions share a table of position biases (T5), the
columns of it that the heads of each look up, too; whether the layers have NoNorm; and the residual stream's width, and
which sub-layers it passes by. ``quantization_config`` names us, no more: that is the slot by which transformers lets a
third party change modules before weights load. After loading nothing of a quantizer is left on the model.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections import Counter
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

from bplightning.equivalence import LogitDifference, made_inputs, require_equal
from bplightning.errors import UserError
from bplightning.folder_bounds import (
    numbers_in,
    require_own_weights,
    require_plausible_layers,
    require_plausible_size,
)
from bplightning.layout import PrunableLayout
from bplightning.narrowing import narrows_any
from bplightning.no_norm import has_no_norm, use_no_norm
from bplightning.resizing import Group, kind_of, make_bias, resize, size_of, stream_width
from bplightning.routing import is_dropped
from bplightning.skipping import is_skipped, skip

QUANT_METHOD = "bplightning"
"""The name under which `from_pretrained` finds us."""

CONFIG_FIELD = "compaction"
"""The configuration's field that holds the widths."""

CONFIG_VERSION = 4
"""Raised by one whenever that field changes its form.

Version 1 had no ``columns``, version 2 no ``no_norm``, version 3 no ``stream``.
"""

CONFIG_KEYS = ("version", "widths", "biases", "columns", "no_norm", "stream")
"""What stands in it: the first three in version 1, and one more in each version since."""

STACKS = {"encoder", "decoder"}
"""What the names of groups begin with."""

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
        inputs = made_inputs(model) if inputs is None else inputs
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


def record_widths(model: nn.Module, *, dense: PrunableLayout, new_biases: Sequence[str]) -> None:
    """Write the widths of a compact model into its configuration, so that `save_pretrained` saves them.

    A model that lost nothing, and has no NoNorm, is left an ordinary one, which loads without us.

    Args:
        model: The compact model.
        dense: Layout of the model it was made from.
        new_biases: Names of groups whose output or down projection has a bias that the architecture does not give it.
    """
    config: Any = model.config
    before = getattr(config, CONFIG_FIELD, None)
    layout = PrunableLayout.of(model)
    widths = {group.name: size_of(group) for group in layout.groups}
    columns = {
        group.name: list(group.position_columns) for group in layout.attention if group.position_bias is not None
    }
    no_norm = has_no_norm(model)
    stream: dict[str, Any] = {"width": stream_width(layout)}
    stream["skipped"] = [group.name for group in layout.groups if is_skipped(model, group)]
    ordinary = before is None and not new_biases and not no_norm
    ordinary = ordinary and stream == {"width": stream_width(dense), "skipped": []}
    if ordinary and widths.items() <= {group.name: size_of(group) for group in dense.groups}.items():  # fewer experts
        if hasattr(config, "quantization_config"):  # that it must be compacted first
            del config.quantization_config
        return
    biases = sorted({*(before["biases"] if before else ()), *new_biases})
    field = {"version": CONFIG_VERSION, "widths": widths, "columns": columns, "biases": biases, "no_norm": no_norm}
    setattr(config, CONFIG_FIELD, {**field, "stream": stream})
    config.quantization_config = {"quant_method": QUANT_METHOD}


def require_compaction(layout: PrunableLayout) -> None:
    """Have transformers refuse what is saved of a model before it is compacted, where weights are not all of it.

    Skipped sub-layers, narrower norms and experts that are routed around live on the modules, and no folder holds them.

    Args:
        layout: A hardened model's.
    """
    model: Any = layout.model
    stream = (getattr(model.config, CONFIG_FIELD, None) or {}).get("stream") or {}
    skipped = {group.name for group in layout.groups if is_skipped(model, group)} - set(stream.get("skipped", ()))
    if skipped or narrows_any(model) or any(is_dropped(model, group) for group in layout.feed_forward):
        model.config.quantization_config = {"quant_method": QUANT_METHOD, "compacted": False}


def apply_widths(model: nn.Module, numbers: int = 0) -> None:
    """Make a model as `from_pretrained` has built it what its configuration says it was, which is checked first.

    Args:
        model: The model, of the meta device.
        numbers: How many numbers its files of weights hold; 0 where that is not known.

    Raises:
        UserError: The field is missing, or does not fit the model.
    """
    layout = PrunableLayout.of(model)
    sizes = {group.name: group for group in layout.groups}
    field = getattr(model.config, CONFIG_FIELD, None)
    version = field.get("version") if isinstance(field, dict) else field
    if not isinstance(field, dict) or type(version) is not int or not 1 <= version <= CONFIG_VERSION:
        raise _broken(f"has version {_shown(version)} where this bplightning reads versions 1 to {CONFIG_VERSION}")
    if unknown := sorted(set(field) - set(CONFIG_KEYS[: version + 2])):
        raise _broken(f"has {unknown[0][:40]!r}, which version {version} of it has not")
    widths, biases, columns = field.get("widths"), field.get("biases"), field.get("columns", {})
    # A model may be one stack of a family that has two (a T5 encoder): what is said of the other is left aside.
    stacks = {_stack(name) for name in sizes}
    if isinstance(widths, dict):
        widths = {name: width for name, width in widths.items() if _stack(name) not in STACKS - stacks}
    if not isinstance(columns, dict) or any(
        name not in sizes and _stack(name) not in STACKS - stacks for name in columns
    ):
        raise _broken(f"must name columns of position biases by the model's groups, got {str(columns)[:80]}")
    if not isinstance(widths, dict) or set(widths) != set(sizes):
        odd = sorted(set(sizes).symmetric_difference(widths if isinstance(widths, dict) else ()))
        raise _broken(
            f"must give one width for each of the model's {len(sizes)} groups; it does not for {_shown(odd[:4])}"
        )
    for name, width in widths.items():
        total = size_of(sizes[name])
        if type(width) is not int or not 0 <= width <= total:
            raise _broken(f"must keep 0 to {total} {kind_of(sizes[name])} of {name!r}, got {_shown(width)}")
    if not isinstance(biases, list) or not all(
        isinstance(name, str) and (name in sizes or _stack(name) not in stacks) for name in biases
    ):
        raise _broken(f"must list groups with a bias of their own, got {_shown(biases)}")
    no_norm = False if version in (1, 2) else field.get("no_norm")
    if type(no_norm) is not bool:
        raise _broken(f"must say true or false of no_norm, got {_shown(no_norm)}")
    dense_width = stream_width(layout)
    stream = field.get("stream") if version > 3 else {"width": dense_width, "skipped": []}
    width, skipped = _stream(stream, sizes, stacks, dense_width)
    rows = sum(count * getattr(sizes[name], "head_size", 1) for name, count in widths.items())
    require_plausible_size(_outside(layout, width / dense_width) + rows, numbers)
    # Which ones of the dense model's were kept matters only for the columns: all else is loaded in the kept sizes.
    # On the CPU: transformers calls this where new tensors are of the meta device.
    kept = {name: torch.arange(width, device="cpu") for name, width in widths.items()}
    if version == 1:
        columns = {name: indices.tolist() for name, indices in kept.items()}
    narrow = None if width == dense_width else torch.arange(width, device="cpu")
    resize(model, layout, kept | _columns(layout, widths, columns), narrow)
    for name in sizes.keys() & biases:
        make_bias(model, sizes[name].members[-1])
    if no_norm:
        use_no_norm(layout)
    for name in skipped:
        skip(model, sizes[name])


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
        require_plausible_size(sum(parameter.numel() for parameter in model.parameters()), numbers)
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


def _columns(layout: PrunableLayout, widths: Mapping[str, int], columns: Any) -> dict[str, Tensor]:
    """By group, the columns of their position bias that its heads look up, checked."""
    checked = {}
    for group in layout.attention:
        if group.position_bias is not None:
            width, total = widths[group.name], size_of(group)
            given: Any = columns.get(group.name) if isinstance(columns, dict) else None
            numbers = isinstance(given, list) and all(type(each) is int and 0 <= each < total for each in given)
            if not numbers or given != sorted(set(given)) or len(given) != width:
                what = f"the {width} columns from 0 to {total - 1} of its position bias that {group.name!r} looks up"
                raise _broken(f"must name {what}, ascending, got {_shown(given)}")
            checked[group.name] = torch.tensor(given, dtype=torch.long, device="cpu")
    return checked


def _stream(stream: Any, groups: Mapping[str, Group], stacks: set[str], dense_width: int) -> tuple[int, list[str]]:
    """The residual stream's width, and the sub-layers of this model that it passes by, checked."""
    if not isinstance(stream, dict) or set(stream) != {"width", "skipped"}:
        raise _broken(f"must say of the residual stream its width and what is skipped, got {_shown(stream)}")
    width, skipped = stream["width"], stream["skipped"]
    if type(width) is not int or not 1 <= width <= dense_width:
        raise _broken(f"must keep 1 to {dense_width} dimensions of the residual stream, got {_shown(width)}")
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise _broken(f"must list the sub-layers that are skipped, got {_shown(skipped)}")
    here = [name for name in skipped if _stack(name) not in STACKS - stacks]
    if unknown := [name for name in here if name not in groups or groups[name].adds is None]:
        raise _broken(f"lists {unknown[0][:40]!r}, which no sub-layer that can be skipped is called")
    return width, here


def _outside(layout: PrunableLayout, part: float) -> int:
    """Numbers outside of groups where only a part of the residual stream's dimensions stays."""
    inside = {member.module for group in layout.groups for member in group.members}
    along = Counter(axis.parameter for axis in layout.residual)
    named = layout.model.named_parameters()
    return sum(
        round(value.numel() * part ** along[name]) for name, value in named if name.rpartition(".")[0] not in inside
    )


def _require_body(model: PreTrainedModel) -> None:
    """Refuse a file that lacks weights of layers or embeddings: transformers would draw them at random.

    Another head than the saved one is a common thing, and is left to transformers' own warning.
    """
    layout = PrunableLayout.of(model)
    inside = {_layer(member.module) for group in layout.groups for member in group.members}
    # Not those of a class of their own, of which some are computed and never saved.
    embeddings = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    body = {
        name: getattr(value, "_is_hf_initialized", False)  # transformers' mark of what it has read
        for name, value in model.named_parameters()
        if id(value) in embeddings or any(name.startswith(f"{layer}.") for layer in inside)
    }
    missing = [name for name, there in body.items() if not there]
    # Where nothing was found, the body has another name in the saved class (as Llama has it for questions).
    if missing and len(missing) < len(body):
        raise UserError(
            f"the weights lack {missing[0]!r}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which the "
            "configuration has: the file is damaged, or of another model."
        )


def _layer(module: str) -> str:
    """Path of the layer that a module is in: up to the last number of it."""
    parts = module.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
    return ".".join(parts[: last + 1])


def _stack(group: str) -> str:
    return group.partition(".")[0]


def _shown(value: object) -> str:
    """A value of a file, which may be of any length."""
    return repr(value)[:160]


def _broken(rule: str) -> UserError:
    return UserError(f"config.json's field {CONFIG_FIELD!r} {rule}: save the compact model again with this version.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


register()  # whoever imports this first, which may be transformers' own import of what it needs
