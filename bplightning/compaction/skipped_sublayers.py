"""Skipping sub-layers that are wholly pruned, together with their norm: the residual stream passes unchanged.

In a post-norm encoder the stream after a sub-layer is ``norm(stream + output)``. Where a sub-layer is wholly pruned,
exact compaction leaves the norm of the stream plus a constant. A strategy may skip the norm as well (Xia et al. 2022,
arXiv 2204.00408, section 3.1), during training and in the compact model.

Legend: `B` batch, `L` tokens, `H` hidden size, `W` input width of the output projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bplightning.layout.instance_mixin import Mixin, mix_in, take_out
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group
from bplightning.masks.masking import Mask


class MaySkip(Mixin):
    """Mixed into the module that adds a sub-layer's output to the stream: skips it while its mask is shut."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """The stream after the sub-layer; the host does not wait for the device's decision.

        Args:
            hidden_states: Input of the output projection, ``(B, L, W)``.
            input_tensor: The stream before the sub-layer, ``(B, L, H)``.
        """
        output: Tensor = super().forward(hidden_states, input_tensor)  # type: ignore[misc]
        (mask,) = self.__dict__["skipped_by"]
        return torch.where(mask.any_open(), output, input_tensor)


class Skipped(Mixin):
    """Mixed into the module that added a sub-layer's output to the stream: passes the stream."""

    innermost = True
    training: bool
    parameters: Callable[[], Iterator[nn.Parameter]]

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """The stream, unchanged.

        Args:
            hidden_states: Unused.
            input_tensor: The stream, ``(B, L, H)``.
        """
        if self.training:  # Distributed training refuses unused parameters, so an empty sum uses all of them.
            return input_tensor + sum(unread.flatten()[:0].sum() for unread in (hidden_states, *self.parameters()))
        return input_tensor


def skip_when_shut(model: nn.Module, group: Group, mask: Mask) -> None:
    """Skip a sub-layer during training whenever its mask is shut.

    Args:
        model: The model.
        group: The sub-layer; its `adds` is known.
        mask: The mask of its heads or units.
    """
    module = _adding(model, group)
    module.__dict__["skipped_by"] = (mask,)  # in a tuple, which hides it from `state_dict`
    mix_in(module, MaySkip)


def settle_skips(layout: PrunableLayout) -> None:
    """Make the sub-layers that are skipped now skipped permanently; call it before the masks are removed."""
    for group in layout.groups:
        module = None if group.adds is None else _adding(layout.model, group)
        if module is not None and isinstance(module, MaySkip):
            (mask,) = module.__dict__.pop("skipped_by")
            take_out(module, MaySkip)
            if not mask.any_open():
                mix_in(module, Skipped)


def skip(model: nn.Module, group: Group) -> None:
    """Skip a sub-layer permanently."""
    mix_in(_adding(model, group), Skipped)


def is_skipped(model: nn.Module, group: Group) -> bool:
    """Whether a sub-layer is skipped permanently."""
    return group.adds is not None and isinstance(_adding(model, group), Skipped)


def skips_any(model: nn.Module) -> bool:
    """Whether any sub-layer is skipped permanently."""
    return any(isinstance(module, Skipped) for module in model.modules())


def unskip(model: nn.Module) -> None:
    """Stop skipping sub-layers."""
    for module in model.modules():
        take_out(module, Skipped)


def _adding(model: nn.Module, group: Group) -> nn.Module:
    assert group.adds is not None
    return model.get_submodule(group.adds)
