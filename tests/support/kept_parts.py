"""Zeros in all heads or units of a layer but some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bplightning.layout.resizing import Group, reader_rows, size_of, writer_columns


@torch.no_grad()
def keep_only(model: nn.Module, group: Group, kept: Sequence[int], *, biases: bool = True) -> None:
    """Write zeros into the other heads or units of a group, and with `biases` into theirs."""
    others = torch.tensor(sorted(set(range(size_of(group))) - set(kept)), dtype=torch.long)
    *readers, writer = group.members
    for member in readers:
        rows = reader_rows(group, member, others)
        member.weight(model)[rows] = 0
        if biases and (bias := member.bias_of(model)) is not None:
            bias[rows] = 0
    if biases:
        writer.weight(model)[:, writer_columns(group, others)] = 0
