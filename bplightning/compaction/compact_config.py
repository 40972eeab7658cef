"""The record of a compact model's shapes in its configuration: written, checked, and applied while a model is loaded.

The configuration's field ``compaction`` holds the widths by group name (stack, layer and role), never by module path.
It also holds the columns that the heads of each attention layer look up in a shared table of position biases (T5),
whether the layers have NoNorm, the width of the residual stream, and the sub-layers that are skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.compaction.narrow_stream import narrows_any
from bplightning.compaction.no_norm import has_no_norm, use_no_norm
from bplightning.compaction.skipped_sublayers import is_skipped, skip
from bplightning.compaction.untrusted_folder import own_parameters, require_plausible_size
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, kind_of, make_bias, resize, size_of, stream_width
from bplightning.layout.routing import is_dropped

QUANT_METHOD = "bplightning"
"""The name by which `from_pretrained` finds our loader."""

CONFIG_FIELD = "compaction"
"""The configuration's field with the widths."""

CONFIG_VERSION = 4
"""Raised by one whenever that field changes its form.

Version 1 had no ``columns``, version 2 no ``no_norm``, version 3 no ``stream``.
"""

CONFIG_KEYS = ("version", "widths", "biases", "columns", "no_norm", "stream")
"""Keys of that field: the first three in version 1, and one more in each later version."""

STACKS = {"encoder", "decoder"}
"""First parts of the names of groups."""


def record_widths(model: nn.Module, *, dense: PrunableLayout, new_biases: Sequence[str]) -> None:
    """Write the widths of a compact model into its configuration, so that `save_pretrained` saves them.

    A model that lost nothing and has no NoNorm stays an ordinary one, which loads without this package.

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
    """Make transformers refuse a model that is saved before it is compacted, if its weights are not everything.

    Skipped sub-layers, narrowing norms and dropped experts exist only on the modules, and no folder holds them.

    Args:
        layout: Layout of a hardened model.
    """
    model: Any = layout.model
    stream = (getattr(model.config, CONFIG_FIELD, None) or {}).get("stream") or {}
    skipped = {group.name for group in layout.groups if is_skipped(model, group)} - set(stream.get("skipped", ()))
    if skipped or narrows_any(model) or any(is_dropped(model, group) for group in layout.feed_forward):
        model.config.quantization_config = {"quant_method": QUANT_METHOD, "compacted": False}


def apply_widths(model: nn.Module, numbers: int = 0) -> None:
    """Give a model that `from_pretrained` has built the shapes in its configuration, which are checked first.

    Args:
        model: The model, on the meta device.
        numbers: How many numbers its files of weights hold; 0 if unknown.

    Raises:
        UserError: The field is missing, or does not fit the model.
    """
    layout = PrunableLayout.of(model)
    sizes = {group.name: group for group in layout.groups}
    field = getattr(model.config, CONFIG_FIELD, None)
    version = field.get("version") if isinstance(field, dict) else field
    if not isinstance(field, dict) or type(version) is not int or not 1 <= version <= CONFIG_VERSION:
        raise _broken(f"has version {_shown(version)}, but this bplightning reads versions 1 to {CONFIG_VERSION}")
    if unknown := sorted(set(field) - set(CONFIG_KEYS[: version + 2])):
        raise _broken(f"has {unknown[0][:40]!r}, which is no key of version {version}")
    widths, biases, columns = field.get("widths"), field.get("biases"), field.get("columns", {})
    # A model may be one stack of a family that has two (a T5 encoder): entries of the other are ignored.
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
        raise _broken(f"must list the groups with an added bias, got {_shown(biases)}")
    no_norm = False if version in (1, 2) else field.get("no_norm")
    if type(no_norm) is not bool:
        raise _broken(f"must have true or false for no_norm, got {_shown(no_norm)}")
    dense_width = stream_width(layout)
    stream = field.get("stream") if version > 3 else {"width": dense_width, "skipped": []}
    width, skipped = _stream(stream, sizes, stacks, dense_width)
    rows = sum(count * getattr(sizes[name], "head_size", 1) for name, count in widths.items())
    require_plausible_size(_outside(layout, width / dense_width) + rows, numbers)
    # Only the columns need the indices of the dense model: everything else is loaded in the kept sizes.
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


def _columns(layout: PrunableLayout, widths: Mapping[str, int], columns: Any) -> dict[str, Tensor]:
    """The columns of the position bias that the heads of each group look up, checked."""
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
    """The width of the residual stream, and the skipped sub-layers of this model, checked."""
    if not isinstance(stream, dict) or set(stream) != {"width", "skipped"}:
        raise _broken(f"must have width and skipped for the residual stream, got {_shown(stream)}")
    width, skipped = stream["width"], stream["skipped"]
    if type(width) is not int or not 1 <= width <= dense_width:
        raise _broken(f"must keep 1 to {dense_width} dimensions of the residual stream, got {_shown(width)}")
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise _broken(f"must list the sub-layers that are skipped, got {_shown(skipped)}")
    here = [name for name in skipped if _stack(name) not in STACKS - stacks]
    if unknown := [name for name in here if name not in groups or groups[name].adds is None]:
        raise _broken(f"lists {unknown[0][:40]!r}, which is no sub-layer that can be skipped")
    return width, here


def _outside(layout: PrunableLayout, part: float) -> int:
    """How many numbers are outside of groups, if this part of the stream's dimensions stays."""
    inside = {member.module for group in layout.groups for member in group.members}
    along = Counter(axis.parameter for axis in layout.residual)
    own = own_parameters(layout.model)
    return sum(
        round(value.numel() * part ** along[name]) for name, value in own if name.rpartition(".")[0] not in inside
    )


def _stack(group: str) -> str:
    return group.partition(".")[0]


def _shown(value: object) -> str:
    """A value of a file, shortened."""
    return repr(value)[:160]


def _broken(rule: str) -> UserError:
    return UserError(f"config.json's field {CONFIG_FIELD!r} {rule}: save the compact model again with this version.")
