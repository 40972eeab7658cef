"""Gates on the heads and units of a network, of one number an example or of one for all: what the loss feels of them.

A head is what goes into its columns of the output projection, a unit what goes into its column of the down projection;
a gate is what that is multiplied with. So a gate of 0 is a head or unit that is gone.

Legend: `B` batch, `L` tokens, `C` columns of an output or down projection, `N` heads or units, `E` examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.layout.resizing import Group, size_of
from bplightning.training.calibration import rows_of

Batch = dict[str, Tensor]
"""Keyword arguments of a model."""


class Enough(Exception):  # noqa: N818  no error: what a pass was for has been seen
    """Ends a forward pass of which no more is needed."""


@contextmanager
def writers_seen(model: nn.Module, groups: Sequence[Group], see: Callable[[Group, Tensor], Tensor]) -> Iterator[None]:
    """Look at what goes into the output and down projections of a network, and change it.

    Args:
        model: The network.
        groups: Whose projections.
        see: From a group and what goes into its projection, ``(..., C)``, to what goes in instead.
    """
    handles = []
    try:
        for group in groups:

            def hook(module: nn.Module, given: tuple[Any, ...], group: Group = group) -> tuple[Any, ...]:
                return see(group, given[0]), *given[1:]

            handles.append(model.get_submodule(group.members[-1].module).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def gated(given: Tensor, gates_BN: Tensor) -> Tensor:
    """What goes into a projection ``(..., C)``, examples first, each head or unit of it multiplied by its gate.

    Args:
        given: Rows of examples, one after the other.
        gates_BN: One gate an example, or with `B` of 1 one for all.

    Raises:
        UserError: Tokens of examples are packed together.
    """
    examples, size = gates_BN.shape
    if given.shape[:-1].numel() % examples:
        raise UserError(
            f"what goes through the layers, of shape {tuple(given.shape)}, is not of {examples} examples one by one: "
            "this model packs tokens of examples together. Load it with another attention implementation."
        )
    return (given.reshape(examples, -1, size, given.shape[-1] // size) * gates_BN[:, None, :, None]).view(given.shape)


def gradients_by_example(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Iterable[Batch],
    loss_fn: Callable[[Any, Batch], Tensor],
) -> tuple[dict[str, Tensor], list[str]]:
    """The gradient of each example's loss by the gates of all heads and units, where all are 1.

    Args:
        model: The network, in evaluation mode.
        groups: Whose heads and units.
        batches: Examples.
        loss_fn: From outputs and batch to the mean loss.

    Returns:
        Name of each group to ``(E, N)``, in float32 on the processor; and the names in the order in which the groups
        are computed, each as often as that is.
    """
    found: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    order: list[str] = []
    like = next(model.parameters())
    for batch in batches:
        rows = rows_of(batch)
        gates = {
            group.name: torch.ones(rows, size_of(group), device=like.device, dtype=like.dtype, requires_grad=True)
            for group in groups
        }
        order.clear()

        def see(group: Group, given: Tensor, gates: Mapping[str, Tensor] = gates) -> Tensor:
            order.append(group.name)
            return gated(given, gates[group.name])

        with torch.enable_grad(), writers_seen(model, groups, see):
            loss = loss_fn(model(**batch), batch)
        # 0 for what is never computed, such as cross-attention of a decoder without its encoder.
        gradients = torch.autograd.grad(loss, list(gates.values()), materialize_grads=True)
        for name, gradient_BN in zip(gates, gradients, strict=True):
            found[name].append(rows * gradient_BN.float().cpu())  # the loss is the mean over the rows
    return {name: torch.cat(parts) for name, parts in found.items()}, list(order)
