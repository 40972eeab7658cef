"""Limits on a configuration, derived from the weights in its folder: a folder may come from anywhere.

transformers builds the model of a configuration before it looks at the weights: a billion layers take forever, and
where shapes disagree it fills tensors of the configuration's shapes before it raises an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from bplightning.errors import UserError

ALWAYS = 256
"""Layers and experts that are always allowed, since a family that shares weights between layers has few tensors."""

SLACK = 1 << 22
"""How many numbers a model may have beyond twice those in its files, for example for a new head."""


def require_plausible_layers(folder: Path) -> None:
    """Refuse a configuration with more layers or experts than its weights can fill, before a model is built.

    Args:
        folder: Folder of a saved model. Other problems are left to the code that loads it.

    Raises:
        UserError: There are too many.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    asked = [(key, value) for key, value in _integers(config) if "layer" in key or "experts" in key]
    if all(0 <= value <= ALWAYS for _, value in asked):
        return
    shapes = list(_shapes(folder.glob("*.safetensors")))
    stacked = max((shape[0] for shape in shapes if len(shape) > 2 and 0 not in shape), default=0)
    for key, value in asked:
        allowed = max(ALWAYS, len(shapes), stacked if "experts" in key else 0)
        if not 0 <= value <= allowed:
            raise UserError(f"config.json has {key} {value}, but with the folder's weights it must be 0 to {allowed}")


def require_own_weights(folder: Path) -> None:
    """Refuse an index of weights that names files outside of its folder.

    Args:
        folder: Folder of a saved model.

    Raises:
        UserError: It does.
    """
    for file in folder.glob("*.index.json"):
        try:
            names = json.loads(file.read_bytes())["weight_map"].values()
            outside = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"its {file.name} is no index of weights ({type(error).__name__})") from error
        if outside:
            raise UserError(f"its {file.name} names weights outside of it, such as {outside[0][:80]!r}")


def require_plausible_size(wanted: int, there: int) -> None:
    """Refuse a model with far more numbers than its files hold, before memory is allocated.

    Args:
        wanted: How many numbers the model would have, or a part of them.
        there: How many numbers its files hold, as `numbers_in` counts them; 0 if unknown.

    Raises:
        UserError: There are too many.
    """
    if there and wanted > 2 * there + SLACK:
        raise UserError(
            f"the sizes in config.json make a model of {wanted:,} numbers or more, but its weights have {there:,}: the "
            "file is damaged, or of another model."
        )


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A model's named parameters without those that are tied to others, or will be, since transformers ties them last.

    Args:
        model: The model.
    """
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    return ((name, value) for name, value in model.named_parameters() if name not in tied)


def numbers_in(files: Iterable[str | Path]) -> int:
    """How many numbers the safetensors files among these hold, by their headers."""
    return sum(map(math.prod, _shapes(file for file in map(Path, files) if file.suffix == ".safetensors")))


def _integers(value: Any) -> Iterator[tuple[str, int]]:
    """Each whole number in a configuration, also in nested ones, with its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(inner) is int:
                yield key, inner
            else:
                yield from _integers(inner)


def _shapes(files: Iterable[Path]) -> Iterator[list[int]]:
    """The shape of each tensor in safetensors files, by their headers."""
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a mapping
                yield tensors.get_slice(name).get_shape()
