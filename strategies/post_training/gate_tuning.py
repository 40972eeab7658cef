"""Gates of what is kept of a network, layer by layer, with which each comes nearest to what the dense one gives.

Legend: `L` tokens, `O` width of the residual stream, `C` columns of an output or down projection, `N` heads or units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.layout.resizing import Group, writer_columns
from bplightning.masks.masking import freeze_masks, unfreeze_masks
from bplightning.strategies.shared.head_gates import Batch, Enough, gated, writers_seen
from bplightning.strategies.shared.layer_inputs import mask_name, real_rows
from bplightning.strategies.shared.mask_search import least_squares_gates

DAMPING = 1e-2
"""How much gates are held to 1, in parts of the mean square of a head's or unit's output."""

LARGEST = 10.0
"""A gate beyond this comes of equations that say nothing: such a layer keeps gates of 1, where the published code stops
tuning."""


@torch.no_grad()
def tuned_gates(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """The gates of all heads and units that are kept, found in the order in which layers are computed.

    Each layer reads what the layers before it give with the gates that they have by then, and is to make the residual
    stream what it is after this layer in the dense network.

    Args:
        model: The dense network, in evaluation mode.
        groups: Its groups that can lose heads or units, in the order in which they are computed.
        kept: Name of each group to a binary ``(N,)``.
        batches: Examples; gone through once for each group, from the first that loses any.

    Returns:
        Name of each group to ``(N,)``, 0 for what is not kept.
    """
    like = next(model.parameters())
    gates = {group.name: kept[group.name].to(like) for group in groups}
    freeze_masks(model)
    try:
        for index, group in enumerate(groups):
            here = kept[group.name].to(like.device).nonzero().flatten()
            if len(here) == 0 or all(bool(kept[each.name].all()) for each in groups[: index + 1]):
                continue
            weight_OC = group.members[-1].weight(model).float()
            columns = writer_columns(group, here)
            squares_CC = weight_OC.new_zeros(len(columns), len(columns))
            targets_OC = weight_OC.new_zeros(len(weight_OC), len(columns))
            for batch in batches:
                given_LC, stream_LO = layer_of(model, groups[: index + 1], gates, batch)
                _, dense_LO = layer_of(model, groups[: index + 1], {}, batch)
                target_LO = given_LC @ weight_OC.T + dense_LO - stream_LO
                kept_LC = given_LC[:, columns]
                squares_CC += kept_LC.T @ kept_LC
                targets_OC += target_LO.T @ kept_LC
            found_N = least_squares_gates(
                squares_CC=squares_CC,
                targets_OC=targets_OC,
                weight_OC=weight_OC[:, columns],
                columns=len(columns) // len(here),
                damping=DAMPING,
            )
            if float(found_N.abs().max()) <= LARGEST:
                gates[group.name][here] = found_N.to(like)
    finally:
        unfreeze_masks(model)
    return gates


def layer_of(
    model: nn.Module, groups: Sequence[Group], gates: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """What the last of some groups reads and what the stream is after it, where those before it have gates.

    The stream is what the first norm after the group's projection reads, be it of this layer (BERT) or of the next
    (GPT-2, Llama); where none follows, it is the projection's output alone.

    Args:
        model: The network.
        groups: In the order in which they are computed.
        gates: Name of a group to its gates ``(N,)``; the last group has none.
        batch: Examples.

    Returns:
        What goes into the projection of the last group, ``(L, C)``, and the stream, ``(L, O)``; in float32, without the
        tokens that are padding.
    """
    last, given, after = groups[-1], [], []

    def see(group: Group, what: Tensor) -> Tensor:
        if group is last:
            given.append(what)
            return what
        return gated(what, gates[group.name][None]) if group.name in gates else what

    def written(module: nn.Module, what: tuple[Any, ...], output: Tensor) -> None:
        after.append(output)

    def read(module: nn.Module, what: tuple[Any, ...]) -> None:
        if after:
            if what[0].shape == after[0].shape:
                after[0] = what[0]
            raise Enough

    with ExitStack() as stack:
        stack.enter_context(writers_seen(model, groups, see))
        for module in model.modules():
            if type(module).__name__.endswith("Norm"):
                stack.callback(module.register_forward_pre_hook(read).remove)
        writer = model.get_submodule(last.members[-1].module)
        stack.callback(writer.register_forward_hook(written).remove)
        with suppress(Enough):
            model(**batch)
    mask_BL = batch.get(mask_name(model, last, last.members[-1]))
    given_LC, stream_LO = (real_rows(each[0], mask_BL).float() for each in (given, after))
    return given_LC, stream_LO
