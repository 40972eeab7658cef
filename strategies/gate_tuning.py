"""Gates of what is kept of a network, layer by layer, with which each comes nearest to what the dense one gives.

Legend: `L` tokens, `C` columns of an output or down projection, `N` heads or units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from bplightning.masking import freeze_masks, unfreeze_masks
from bplightning.resizing import Group
from bplightning.strategies.head_gates import Batch, Enough, attended_rows, gated, writers_seen
from bplightning.strategies.mask_search import least_squares_gates

DAMPING = 1e-2
"""How much gates are held to 1, in parts of the mean square of a head's or unit's output."""

LARGEST = 10.0
"""A gate beyond this comes of equations that say nothing: such a layer keeps gates of 1, as in the published code."""


@torch.no_grad()
def tuned_gates(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """The gates of all heads and units that are kept, found in the order in which layers are computed.

    Each layer reads what the layers before it give with the gates that they have by then, and is to give what it gives
    in the dense network.

    Args:
        model: The dense network, in evaluation mode.
        groups: Its groups that can lose heads or units, in the order in which they are computed.
        kept: Name of each group to a binary ``(N,)``.
        batches: Examples; gone through once for each group that loses any.

    Returns:
        Name of each group to ``(N,)``, 0 for what is not kept.
    """
    parameter = next(model.parameters())
    gates = {group.name: kept[group.name].to(parameter) for group in groups}
    freeze_masks(model)
    try:
        for index, group in enumerate(groups):
            if bool(kept[group.name].all()) and all(bool(kept[before.name].all()) for before in groups[:index]):
                continue
            weight_OC = group.members[-1].weight(model)
            squares_CC = crossed_CC = weight_OC.new_zeros(weight_OC.shape[1], weight_OC.shape[1], dtype=torch.float32)
            for batch in batches:
                pruned_LC, dense_LC = (
                    inputs_of(model, groups[: index + 1], gates if prunes else {}, batch) for prunes in (True, False)
                )
                squares_CC = squares_CC + pruned_LC.T @ pruned_LC
                crossed_CC = crossed_CC + pruned_LC.T @ dense_LC
            kept_N = kept[group.name].to(parameter.device)
            found_N = least_squares_gates(
                squares_CC=squares_CC, crossed_CC=crossed_CC, weight_OC=weight_OC, kept_N=kept_N, damping=DAMPING
            )
            if float(found_N.abs().max()) <= LARGEST:
                gates[group.name] = torch.where(kept_N, found_N, 0).to(parameter)
    finally:
        unfreeze_masks(model)
    return gates


def inputs_of(model: nn.Module, groups: Sequence[Group], gates: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """What goes into the projection of the last of some groups, where those before it have gates.

    Args:
        model: The network.
        groups: In the order in which they are computed.
        gates: Name of a group to its gates ``(N,)``.
        batch: Examples.

    Returns:
        ``(L, C)`` in float32, without the tokens that are padding.
    """
    last, seen = groups[-1], []

    def see(group: Group, given: Tensor) -> Tensor:
        if group is last:
            seen.append(given)
            raise Enough
        return gated(given, gates[group.name][None]) if group.name in gates else given

    with writers_seen(model, groups, see), suppress(Enough):
        model(**batch)
    return attended_rows(seen[0], batch)
