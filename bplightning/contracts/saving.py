"""Saving a model that still has masks: what transformers writes is the pruned model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning.compaction.exact_compaction import own_forward
from bplightning.compaction.plan import require_finished
from bplightning.layout.instance_mixin import Mixin, mix_in, take_out
from bplightning.layout.prunable_layout import PrunableLayout

PRUNED_BY = "_pruned_by"
"""Attribute of a masked model with its strategy and layout, in a tuple, which hides them from `state_dict`."""


class Hardens(Protocol):
    """A strategy, as far as it is needed here."""

    def harden(self, layout: PrunableLayout) -> None:
        """Write the masks into the weights, and take them away."""


class SavesPruned(Mixin):
    """Mixed into the class of a transformers model with masks; `push_to_hub` and Trainers call `save_pretrained`."""

    renames = False

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Save the model as `harden` would leave it: zeros inside, an ordinary folder; this one keeps its masks.

        Args:
            save_directory: As in transformers.
            is_main_process: As in transformers.
            state_dict: As in transformers; what only a masked model has is left out.
            *args: As in transformers.
            **kwargs: As in transformers.

        Raises:
            UserError: The model is not wholly simplified, which no ordinary folder can hold.
        """
        pruned = hardened_copy(*self.__dict__[PRUNED_BY])
        require_finished(pruned)
        if state_dict is not None:
            ordinary = pruned.state_dict().keys()
            state_dict = {name: value for name, value in state_dict.items() if name in ordinary}
        return pruned.save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)


def save_as_pruned(strategy: Hardens, layout: PrunableLayout) -> None:
    """Let `save_pretrained` of a model with masks write the pruned model.

    Args:
        strategy: It holds the masks.
        layout: Layout of the model.
    """
    if isinstance(layout.model, PreTrainedModel):
        mix_in(layout.model, SavesPruned)
        layout.model.__dict__[PRUNED_BY] = (strategy, layout)


def save_as_it_is(model: nn.Module) -> None:
    """Let `save_pretrained` write a model without masks again."""
    take_out(model, SavesPruned)
    model.__dict__.pop(PRUNED_BY, None)


def hardened_copy(strategy: Hardens, layout: PrunableLayout) -> PreTrainedModel:
    """A copy of a model as `harden` would leave it, in evaluation mode and without its strategy.

    Args:
        strategy: It holds the masks.
        layout: Layout of the model.
    """
    strategy, layout = copy.deepcopy((strategy, layout))  # together: they hold one another
    model: Any = layout.model
    for name, child in list(model.named_children()):
        if child is strategy:
            delattr(model, name)
    strategy.harden(layout)
    own_forward(model)
    pruned: PreTrainedModel = model.eval()
    return pruned
