"""Sub-layers that are wholly pruned, and skipped with their norm: the residual stream passes them as it is.

In a post-norm encoder the stream after a sub-layer is ``norm(stream + output)``. Where pruning takes all of it, exact
compaction leaves the norm of the stream and a constant; a strategy may say that the norm goes as well (Xia et al. 2022,
arXiv 2204.00408, section 3.1), while it trains and for good.

Legend: `B` batch, `L` tokens, `H` hidden size, `W` what the output projection reads.
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
    """Mixed into what adds a sub-layer's output to the stream: it is skipped whenever its mask lets nothing through."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """The stream after the sub-layer; the host does not wait for the device to say which.

        Args:
            hidden_states: What the output projection reads, ``(B, L, W)``.
            input_tensor: The stream before the sub-layer, ``(B, L, H)``.
        """
        output: Tensor = super().forward(hidden_states, input_tensor)  # type: ignore[misc]
        (mask,) = self.__dict__["skipped_by"]
        return torch.where(mask.any_open(), output, input_tensor)


class Skipped(Mixin):
    """Mixed into what added a sub-layer's output to the stream: the stream passes."""

    innermost = True
    training: bool
    parameters: Callable[[], Iterator[nn.Parameter]]

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """The stream, as it is.

        Args:
            hidden_states: What nothing reads any more.
            input_tensor: The stream, ``(B, L, H)``.
        """
        if self.training:  # Nothing must be unused, which distributed training refuses: all takes part by no number.
            return input_tensor + sum(unread.flatten()[:0].sum() for unread in (hidden_states, *self.parameters()))
        return input_tensor


def skip_when_shut(model: nn.Module, group: Group, mask: Mask) -> None:
    """Skip a sub-layer, in this moment's network, whenever its mask lets nothing through.

    Args:
        model: The model.
        group: The sub-layer; its `adds` is known.
        mask: The mask of its heads or units.
    """
    module = _adding(model, group)
    module.__dict__["skipped_by"] = (mask,)  # in a tuple, which hides it from `state_dict`
    mix_in(module, MaySkip)


def settle_skips(layout: PrunableLayout) -> None:
    """Skip for good what is skipped at this moment, and nothing else; call it while the masks are there."""
    for group in layout.groups:
        module = None if group.adds is None else _adding(layout.model, group)
        if module is not None and isinstance(module, MaySkip):
            (mask,) = module.__dict__.pop("skipped_by")
            take_out(module, MaySkip)
            if not mask.any_open():
                mix_in(module, Skipped)


def skip(model: nn.Module, group: Group) -> None:
    """Skip a sub-layer for good."""
    mix_in(_adding(model, group), Skipped)


def is_skipped(model: nn.Module, group: Group) -> bool:
    """Whether a sub-layer is skipped for good."""
    return group.adds is not None and isinstance(_adding(model, group), Skipped)


def skips_any(model: nn.Module) -> bool:
    """Whether any sub-layer is skipped for good."""
    return any(isinstance(module, Skipped) for module in model.modules())


def unskip(model: nn.Module) -> None:
    """Skip nothing any more."""
    for module in model.modules():
        take_out(module, Skipped)


def _adding(model: nn.Module, group: Group) -> nn.Module:
    assert group.adds is not None
    return model.get_submodule(group.adds)
