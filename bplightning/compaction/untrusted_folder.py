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


def require_float_weights(folder: Path) -> None:
    """Refuse weights of other numbers than floating-point ones, as quantized weights are, and odd names.

    Args:
        folder: Folder of a saved model.

    Raises:
        UserError: There is one; what is no weight, such as the numbers of positions, may be of whole numbers.
    """
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a mapping
                if not name.isprintable():
                    raise UserError(f"its weight {name[:80]!r} has control characters in its name: the file is forged")
                kind = tensors.get_slice(name).get_dtype() if name.endswith((".weight", ".bias")) else "F32"
                if kind not in ("F64", "F32", "F16", "BF16"):
                    raise UserError(
                        f"its weight {name[:80]!r} is of type {kind}, as quantized ones are, and weights are read as "
                        "float32, float16 or bfloat16: give the model before quantization"
                    )


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


def shapes_in(folder: Path) -> Iterator[list[int]]:
    """The shape of each weight in a folder's safetensors files, by their headers.

    Args:
        folder: The folder.
    """
    return _shapes(folder.glob("*.safetensors"))


def numbers_in(files: Iterable[str | Path]) -> int:
    """How many numbers the safetensors files among these hold, by their headers."""
    return sum(map(math.prod, _shapes(file for file in map(Path, files) if file.suffix == ".safetensors")))


def _shapes(files: Iterable[Path]) -> Iterator[list[int]]:
    """The shape of each tensor in safetensors files, by their headers."""
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a mapping
                yield tensors.get_slice(name).get_shape()
