"""Compact copies of a model that lost heads and units at random, as many as pruning would take.

How fast a compact model is follows from its sizes, not from what its weights have learned.

Legend: `N` heads or units of all groups of a role.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bplightning.compaction.exact_compaction import compact
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group, size_of, writer_columns
from bplightning.masks.selection import keep_largest

LAYERS_DIFFER = 1.0
"""How unlike layers are: deviation of what the heads or units of a layer have in common, in deviations of what each has
of its own. The widths that `hybrid` left of MiniLM on SST-2 are those of 0.75 to 1.2."""


def kept_at_random(groups: Sequence[Group], density: Mapping[str, float], *, seed: int) -> dict[str, Tensor]:
    """Which heads and units stay if, in each role, the best of random worths do: unlike numbers from layer to layer.

    With one seed, what stays at a lower density is among what stays at a higher one.

    Args:
        groups: The groups that shrink.
        density: Role to fraction kept, in [0, 1].
        seed: Of the worths.

    Returns:
        Group name to indices, ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    for role in dict.fromkeys(group.role for group in groups):
        own = [group for group in groups if group.role == role]
        sizes = [size_of(group) for group in own]
        layers = LAYERS_DIFFER * torch.randn(len(own), generator=generator)
        worth_N = layers.repeat_interleave(torch.tensor(sizes)) + torch.randn(sum(sizes), generator=generator)
        keeps = keep_largest(values_N=worth_N, density=density[role]).split(sizes)
        kept |= {group.name: keep.nonzero().flatten() for group, keep in zip(own, keeps, strict=True)}
    return kept


@torch.no_grad()
def compact_copy(layout: PrunableLayout, kept: Mapping[str, Tensor]) -> nn.Module:
    """A compact copy that keeps these heads and units, made as at the end of `fit`: by zeros, and by finding them.

    Args:
        layout: Layout of the dense model, which is left as it is.
        kept: Group name to the indices that stay; groups that are not named stay whole.

    Returns:
        The copy. Parameters that did not shrink, such as embeddings, are the dense model's own, so that several copies
        take little memory: it is for looking at, not for training.
    """
    model = layout.model
    tensors = itertools.chain(model.parameters(), model.buffers())
    shell = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for group in layout.groups:
        if group.name in kept:
            writer = group.members[-1]
            owner = shell.get_submodule(writer.module)
            owner._parameters[writer.parameter] = nn.Parameter(owner.get_parameter(writer.parameter).detach().clone())
            removed = torch.ones(size_of(group), dtype=torch.bool)
            removed[kept[group.name]] = False
            writer.weight(shell)[:, writer_columns(group, removed.nonzero().flatten())] = 0
    smaller = compact(shell)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module, _, leaf = name.rpartition(".")
        parameters = smaller.get_submodule(module)._parameters
        own = parameters.get(leaf)
        if own is not None and own.shape == parameter.shape:
            parameters[leaf] = parameter
    return smaller
