"""A made-up set of images: one shape on a noisy ground, and another thing or two that make no difference."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from PIL import ImageDraw

SHAPES = ("circle", "cross", "square", "triangle")
SIZE = 32
"""Pixels of a side."""
DEFAULT_SIZES = {"train": 4000, "validation": 400}


def generate(split: str, *, size: int | None = None, seed: int = 0) -> Dataset:
    """Generate one split.

    Args:
        split: ``"train"`` or ``"validation"``.
        size: Number of images; by default 4,000 and 400.
        seed: Seed; the same arguments give the same images in every process.

    Returns:
        ``image`` and ``label``, one of `SHAPES`.

    Raises:
        ValueError: If `split` is unknown.
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"split is {split!r}, but the generated set has {sorted(DEFAULT_SIZES)}: name one of these")
    rng = random.Random(f"{split}-{seed}")  # a string seed is hashed with SHA-512: the same in every process
    labels = [rng.randrange(len(SHAPES)) for _ in range(DEFAULT_SIZES[split] if size is None else size)]
    rows: dict[str, list[Any]] = {"image": [draw(SHAPES[label], rng) for label in labels], "label": labels}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=list(SHAPES))}))


def draw(shape: str, rng: random.Random) -> Pillow.Image:
    """One image, ``SIZE x SIZE`` pixels in colour."""
    noise = np.random.default_rng(rng.randrange(2**32))
    ground = noise.integers(0, 110, 3) + noise.normal(0, 14, (SIZE, SIZE, 3))
    image = Pillow.fromarray(ground.clip(0, 255).astype("uint8"))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 2)):  # specks, which mean nothing
        x, y = rng.randrange(SIZE - 3), rng.randrange(SIZE - 3)
        pen.rectangle((x, y, x + 1, y + 1), fill=_colour(rng))
    radius = rng.randint(5, 9)
    x, y = rng.randint(radius, SIZE - radius - 1), rng.randint(radius, SIZE - radius - 1)
    box, colour = (x - radius, y - radius, x + radius, y + radius), _colour(rng)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle((x - radius + 1, y - radius + 1, x + radius - 1, y + radius - 1), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        pen.line((x - radius, y - radius, x + radius, y + radius), fill=colour, width=3)
        pen.line((x - radius, y + radius, x + radius, y - radius), fill=colour, width=3)
    return image


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(140, 255), rng.randint(140, 255), rng.randint(140, 255)
