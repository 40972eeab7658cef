"""Images of the size that a model takes, made by its image processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from bplightning.compaction.example_inputs import image_sides
from bplightning.errors import UserError

MODES = {1: "L", 4: "RGBA"}
"""Channels of a model to Pillow's name of such images; all others are in colour."""

PROBES = ((64, 48), (40, 80))
"""Pixels, width and height, of the images that show what a processor makes of an image lying and of one standing."""

LARGEST = 1 << 12
"""Pixels of a side at most that a folder's settings may ask for."""

Sides = tuple[int, int]
"""Height and width, pixels."""


def mode_of(config: Any) -> str:
    """Pillow's name of the images that a model takes."""
    return MODES.get(getattr(config, "num_channels", 3), "RGB")


def fitted_processor(read: Callable[..., Any], config: Any, *, name: str) -> Any:
    """The image processor of a model, which makes images of the size that the model takes.

    Its own settings are kept if they do that: a size in height and width, or a shortest edge and a crop. If not, they
    are scaled to the model's ``image_size``, with the same share cut off; an image whose sides keep their ratio is
    cropped in the middle.

    Args:
        read: Reads the processor; its keyword arguments are settings to change.
        config: The model's configuration.
        name: What the model is called in messages.

    Raises:
        UserError: The images cannot be made so.
    """
    processor = read()
    made, wanted = _made(processor, config, name), _wanted(config)
    if made == {wanted} or (wanted is None and len(made) == 1):
        return processor
    if wanted is not None:
        processor = read(**scaled(processor, wanted))
        if _made(processor, config, name) == {wanted}:
            rank_zero_info(
                f"The image processor of {name!r} makes images of {_shown(made)} pixels, and the model takes "
                f"{_shown({wanted})}: they are scaled to that."
            )
            return processor
    raise UserError(
        f"The image processor of {name!r} makes images of {_shown(made)} pixels, and the model takes "
        f"{'one size only' if wanted is None else _shown({wanted})}: correct size, crop_size and do_center_crop in its "
        "preprocessor_config.json."
    )


def scaled(processor: Any, wanted: Sides) -> dict[str, Any]:
    """The settings of a processor for another size.

    Args:
        processor: With ``size``, and ``crop_size`` where it crops.
        wanted: Of the images that it is to make.
    """
    size = _given(processor.size)
    crop = _given(processor.crop_size) if getattr(processor, "do_center_crop", None) else {}
    before = _square(crop)
    factors = [side / old for side, old in zip(wanted, before, strict=True)] if before else [1.0, 1.0]
    cropped = {"do_center_crop": True, "crop_size": dict(zip(("height", "width"), wanted, strict=True))}
    if "shortest_edge" in size:
        edge = round(size["shortest_edge"] * max(factors)) if before else max(wanted)
        return {"do_resize": True, "size": {"shortest_edge": max(edge, *wanted)}, **cropped}
    sides = _square(size) if before else None
    larger = wanted if sides is None else tuple(round(side * by) for side, by in zip(sides, factors, strict=True))
    whole = {"do_resize": True, "size": dict(zip(("height", "width"), larger, strict=True))}
    return whole | (cropped if before else {"do_center_crop": False})


def sides_of(processor: Any, config: Any, *, name: str) -> Sides:
    """Height and width of the images that a fitted processor makes."""
    (sides,) = _made(processor, config, name)
    return sides


def _made(processor: Any, config: Any, name: str) -> set[Sides]:
    """What a processor makes of images of different shapes."""
    for field in ("size", "crop_size", "pad_size"):
        given = _given(getattr(processor, field, None))
        sides = {key: side for key, side in given.items() if key in ("height", "width", "shortest_edge")}
        if any(isinstance(side, int | float) and side > LARGEST for side in sides.values()):
            raise UserError(
                f"The image processor of {name!r} has {field} {sides}, and a side has {LARGEST} pixels at most: "
                "correct its preprocessor_config.json."
            )
    found = set()
    for probe in PROBES:
        try:
            pixels = processor([Image.new(mode_of(config), probe)], return_tensors="pt")["pixel_values"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"The image processor of {name!r} makes nothing of an image of {probe[0]} x {probe[1]} pixels in mode "
                f"{mode_of(config)} ({' '.join(str(error).split())}): correct its preprocessor_config.json."
            ) from error
        found.add((int(pixels.shape[-2]), int(pixels.shape[-1])))
    return found


def _wanted(config: Any) -> Sides | None:
    size = getattr(config, "image_size", None)
    return None if size is None else image_sides(size)


def _given(size: Any) -> dict[str, int]:
    """The sides that a size of transformers sets."""
    return {key: value for key, value in dict(size or {}).items() if value is not None}


def _square(size: dict[str, int]) -> Sides | None:
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    edge = size.get("shortest_edge")
    return None if edge is None else (edge, edge)


def _shown(sides: set[Sides]) -> str:
    return " or ".join(f"{height} x {width}" for height, width in sorted(sides))
