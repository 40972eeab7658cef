"""What processors of transformers say of sizes and crops, and the size that a model takes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from bplightning.errors import UserError
from bplightning.tasks.shared.image_sizes import fitted_processor, sides_of

SQUARE = {"height": 32, "width": 32}
CROPPED = {"do_center_crop": True, "crop_size": SQUARE}


def read(folder: Path, kind: str, **settings: Any) -> Any:
    """A function that reads a processor from a folder."""
    written = {"image_processor_type": f"{kind}ImageProcessor"} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return partial(AutoImageProcessor.from_pretrained, folder)


def pixels(processor: Any, width: int, height: int) -> torch.Tensor:
    """A picture, white in its middle half and black at its sides, as the processor makes it, from 0 to 1."""
    picture = np.zeros((height, width, 3), dtype="uint8")
    picture[:, width // 4 : 3 * width // 4] = 255
    return processor([Image.fromarray(picture)], return_tensors="pt", do_normalize=False)["pixel_values"][0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"size": SQUARE}),
        ("ViT", {"size": 32}),
        ("CLIP", {"size": {"shortest_edge": 32}, **CROPPED}),
        ("CLIP", {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}),
        ("DeiT", {"size": {"height": 36, "width": 36}, **CROPPED}),
        ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
        ("Levit", {"size": {"shortest_edge": 32}, **CROPPED}),
    ],
)
def test_a_processor_that_makes_what_the_model_takes_stays_as_it_is(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    reader, config = read(tmp_path, kind, **settings), SimpleNamespace(image_size=32, num_channels=3)
    processor = fitted_processor(reader, config, name="m")
    assert processor.to_dict() == reader().to_dict()
    assert sides_of(processor, config, name="m") == (32, 32)


@pytest.mark.parametrize(
    ("kind", "settings", "size"),
    [
        ("ViT", {}, {"height": 32, "width": 32}),  # its default is 224
        ("ViT", {"do_resize": False}, {"height": 32, "width": 32}),
        ("CLIP", {"size": {"shortest_edge": 224}, "do_center_crop": False}, {"shortest_edge": 32}),
        ("CLIP", {"size": {"shortest_edge": 256}, "crop_size": 224}, {"shortest_edge": 37}),
        ("DeiT", {"size": {"height": 256, "width": 256}, "crop_size": 224}, {"height": 37, "width": 37}),
        ("Bit", {"size": {"shortest_edge": 20}, "do_center_crop": False}, {"shortest_edge": 32}),
    ],
)
def test_other_sizes_are_scaled_to_the_models(
    kind: str, settings: dict[str, Any], size: dict[str, int], tmp_path: Path
) -> None:
    config = SimpleNamespace(image_size=[32, 32])
    processor = fitted_processor(read(tmp_path, kind, **settings), config, name="m")
    assert {name: side for name, side in dict(processor.size).items() if side is not None} == size
    for width, height in ((64, 48), (30, 60)):
        assert pixels(processor, width, height).shape == (3, 32, 32)
    processor.save_pretrained(tmp_path)  # and so it is saved beside a compact model
    assert sides_of(AutoImageProcessor.from_pretrained(tmp_path), config, name="m") == (32, 32)


def test_sides_keep_their_ratio_where_the_shortest_edge_is_given(tmp_path: Path) -> None:
    settings = {"size": {"shortest_edge": 224}, "do_center_crop": False}
    cropped = fitted_processor(read(tmp_path, "CLIP", **settings), SimpleNamespace(image_size=32), name="m")
    assert pixels(cropped, 128, 64).mean() == pytest.approx(1.0, abs=0.05)  # the middle half, and nothing else
    squeezed = fitted_processor(read(tmp_path, "ViT"), SimpleNamespace(image_size=32), name="m")
    assert pixels(squeezed, 128, 64).mean() == pytest.approx(0.5, abs=0.05)


def test_a_size_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    varying = read(tmp_path, "CLIP", size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(
        UserError, match=r"makes images of 32 x 42 or 64 x 32 pixels, and the model takes one size only"
    ):
        fitted_processor(varying, SimpleNamespace(), name="m")
    with pytest.raises(UserError, match=r"makes nothing of an image of 64 x 48 pixels in mode L \(mean must have 1"):
        fitted_processor(read(tmp_path, "ViT"), SimpleNamespace(image_size=32, num_channels=1), name="m")
    grey = read(tmp_path, "ViT", size=SQUARE, image_mean=[0.5], image_std=[0.5])
    config = SimpleNamespace(image_size=32, num_channels=1)
    assert sides_of(fitted_processor(grey, config, name="m"), config, name="m") == (32, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 10**6, "width": 32}},
        {"size": {"shortest_edge": 10**6}},
        {"size": SQUARE, "do_center_crop": True, "crop_size": {"height": 10**6, "width": 10**6}},
    ],
)
def test_sizes_that_would_fill_memory_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    config = SimpleNamespace(image_size=32, num_channels=3)
    with pytest.raises(UserError, match="a side has 4096 pixels at most: correct its preprocessor_config"):
        fitted_processor(read(tmp_path, "ViT", **settings), config, name="m")
