"""Models that are read in double precision, with attention whose weights can be seen."""

from __future__ import annotations

import torch
from tiny_families import tiny
from torch import nn

from bplightning.layout.prunable_layout import PrunableLayout


def make(model_type: str) -> tuple[nn.Module, PrunableLayout]:
    """A tiny model of a family, in float64, and its layout."""
    model = tiny(model_type, dtype=torch.float64, attention="eager")
    return model, PrunableLayout.of(model)
