"""Compact copies of a model without some heads and units, which are chosen at random.

The speed of a compact model depends on its sizes, not on what its weights have learned.

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
"""How much layers differ: the standard deviation of a layer's common value, relative to that of a single head or unit.

The widths of MiniLM pruned with `hybrid` on SST-2 correspond to 0.75 to 1.2.
"""


def kept_at_random(groups: Sequence[Group], density: Mapping[str, float], *, seed: int) -> dict[str, Tensor]:
    """The heads and units that stay when the highest random values of each role do: different numbers in each layer.

    With one seed, those that stay at a lower density also stay at a higher one.

    Args:
        groups: The groups that shrink.
        density: Role to the fraction kept, in [0, 1].
        seed: Seed of the values.

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
    """A compact copy that keeps these heads and units, made as at the end of `fit`: by writing and finding zeros.

    Args:
        layout: Layout of the dense model, which stays unchanged.
        kept: Group name to the indices that stay; groups that are not named stay whole.

    Returns:
        The copy. Parameters that did not shrink, such as embeddings, are shared with the dense model, so that several
        copies take little memory: it is for measuring, not for training.
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
