"""Attaching a strategy to a model in another training loop.

A penalty depends only on the strategy and the model, which are the same on all ranks and in all batches accumulated for
a step. So its gradient is added once per step, after the last batch, to gradients that are already reduced. Added to
the loss of each batch, it would depend on how the loop averages batches, which differs between loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin

from bplightning.compaction.equivalence import LogitDifference
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.contracts.capabilities import Prepared, Staged
from bplightning.contracts.saving import hardened_copy
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.suitability import require_by_training
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import has_masks
from bplightning.training.checkpoint_files import UNREADABLE
from bplightning.training.guards import require_precise_scores

OWNED_AS = "pruning_strategy"
"""Name of the strategy among the modules of its owner, and in its `state_dict`."""

STATE_FILE = "pruning_state.pt"
"""Name of the file, in a checkpoint folder of the transformers Trainer, from which pruning resumes."""

PEAKS = ("max_lr", "initial_lr", "lr")
"""Names of a group's highest learning rate; the first that it has is used."""

RATES_OF_A_GROUP = ("lr", "initial_lr", "max_lr", "min_lr")
"""Learning rates that optimizers and schedulers keep in a group."""

RATES_OF_A_SCHEDULER = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
"""Lists of learning rates, one per group, that torch's schedulers keep."""

OTHERS_OF_A_SCHEDULER = ("lr_lambdas", "base_momentums", "max_momentums")
"""Lists of other values, one per group, that torch's schedulers keep."""


class Attachment:
    """A strategy attached to a model; the strategy becomes a module of `owner`, and so is part of its checkpoints.

    Args:
        strategy: The pruning strategy.
        model: The transformers model to prune.
        owner: The module that is saved, moved and wrapped: `model` itself, or one that holds it.

    Raises:
        UserError: The strategy needs data that the loop does not give it.
    """

    def __init__(self, strategy: PruningStrategy, model: PreTrainedModel, owner: nn.Module) -> None:
        if strategy.capability(Staged) is not None:
            raise UserError(
                f"{type(strategy).__name__} needs `calibrate`, which other training loops do not call: train with "
                "`bplightning fit` or PruningModule, or call `calibrate` in your own loop when `wants_calibration` "
                "asks for it."
            )
        self.strategy = strategy
        self.model = model
        self.owner = owner
        require_by_training(strategy)
        self.layout = PrunableLayout.of(model)
        strategy.attach(self.layout)
        owner.add_module(OWNED_AS, strategy)
        # Each rank sets its own masks: DDP need not send them before each forward pass.
        ignored = [*getattr(owner, "_ddp_params_and_buffers_to_ignore", [])]
        ignored += [f"{OWNED_AS}.{name}" for name, _ in strategy.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(owner, ignored)

    def join(self, optimizer: Any, *, total_steps: int, schedulers: Iterable[Any] = ()) -> None:
        """Add the strategy's groups to an optimizer; their parameters are removed from its other groups.

        Learning rates of the new groups follow the schedule of the group with the pruned weights.

        Args:
            optimizer: The optimizer of the model's weights.
            total_steps: Optimizer steps of the whole run.
            schedulers: Schedulers that have been made for `optimizer`.
        """
        require_precise_scores(self.strategy)
        own = {id(parameter) for parameter in self.strategy.parameters()}
        if any(group["params"] and all(id(p) in own for p in group["params"]) for group in optimizer.param_groups):
            return  # they were added before
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        weights = {id(parameter) for parameter in self.model.parameters()}
        at = next((i for i, group in enumerate(optimizer.param_groups) if _any_in(group["params"], weights)), 0)
        like = optimizer.param_groups[at]
        peak = next(float(like[name]) for name in PEAKS if name in like)
        for group in self.strategy.parameter_groups(total_steps=total_steps):
            ratio = group.get("lr", peak) / peak if peak else 1.0
            rates = {name: like[name] * ratio for name in RATES_OF_A_GROUP if name in like}
            optimizer.add_param_group({**like, **group, **rates})
            for scheduler in _all(schedulers):
                for name in (*RATES_OF_A_SCHEDULER, *OTHERS_OF_A_SCHEDULER):
                    values = getattr(scheduler, name, None)
                    if isinstance(values, list):
                        values.append(values[at] * ratio if name in RATES_OF_A_SCHEDULER else values[at])

    def prepare(self) -> None:
        """Let a strategy measure what it must; call it when training begins, before the first `advance`."""
        if (prepared := self.strategy.capability(Prepared)) is not None:
            prepared.prepare(self.hardened_copy)

    def hardened_copy(self) -> PreTrainedModel:
        """A copy of the model as `harden` would leave it, in evaluation mode; the model keeps its masks."""
        return hardened_copy(self.strategy, self.layout)

    def add_penalty(self, scale: Callable[[Tensor], Tensor] = lambda penalty: penalty) -> None:
        """Add the gradient of the strategy's penalty to that of the last batch; call it once per optimizer step.

        Args:
            scale: Scales the loss before its gradients are computed, while gradients are still scaled.
        """
        penalty = self.strategy.penalty()
        if penalty is not None:
            scale(penalty).backward()

    def save_state(self, folder: Path) -> None:
        """Write what training needs to resume, and the pruned model in the same folder does not hold.

        Args:
            folder: Folder of a checkpoint, of a model that still has masks.
        """
        pruned = self.hardened_copy().state_dict()
        state = self.model.state_dict()
        more = {name: value for name, value in state.items() if not _same(value, pruned.get(name))}
        torch.save(more, folder / STATE_FILE)

    def load_state(self, folder: Path) -> None:
        """Read what `save_state` wrote, after the pruned model's weights were loaded from the same folder.

        Args:
            folder: Folder of a checkpoint.

        Raises:
            UserError: It holds no such state, or that of another model or strategy.
        """
        file = folder / STATE_FILE
        if not file.is_file():
            raise UserError(
                f"{str(folder)!r} has no {STATE_FILE}, the scores and masks from which pruning resumes: give a "
                "checkpoint folder that a PruningTrainer wrote, or begin a new run without resume_from_checkpoint."
            )
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            self.strategy.take_older_names(state, f"{OWNED_AS}.")
            own = self.model.state_dict()
            differ = {
                name for name in own if name.startswith(f"{OWNED_AS}.")
            } - state.keys() | state.keys() - own.keys()
            if differ:
                raise KeyError(min(differ))
            self.model.load_state_dict(state, strict=False)
        except UNREADABLE as error:
            raise UserError(
                f"{str(file)!r} is damaged, or of another model or strategy ({' '.join(str(error).split())[:200]}): "
                "give a checkpoint of the same, or begin a new run."
            ) from error

    def compact(self) -> PreTrainedModel:
        """The compact model; the strategy is hardened, and the pruned model becomes an ordinary one with zeros."""
        if has_masks(self.model):
            self.strategy.harden(self.layout)
        if hasattr(self.owner, OWNED_AS):
            delattr(self.owner, OWNED_AS)
        small: PreTrainedModel = compact(self.model)  # type: ignore[assignment]
        return small.eval()

    def save(
        self,
        folder: str | Path,
        tokenizer: PushToHubMixin | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> LogitDifference:
        """Compact the model, and save it as `save_compact` does.

        Args:
            folder: Where to save; it must not exist yet, or be empty.
            tokenizer: Tokenizer or image processor, saved along with the model.
            inputs: Inputs on which the saved and the reloaded model are compared; by default seeded random tokens.
        """
        return save_compact(self.compact(), folder, tokenizer, inputs)


class Attached:
    """Methods of a callback whose strategy is attached to a model."""

    not_yet: ClassVar[str]
    """Remedy for the message when nothing is attached yet."""

    _attachment: Attachment | None = None

    @property
    def attachment(self) -> Attachment:
        """The strategy on its model.

        Raises:
            UserError: Nothing has been trained with this callback yet.
        """
        if self._attachment is None:
            raise UserError(f"nothing has been pruned yet: {self.not_yet}.")
        return self._attachment

    def compact(self) -> PreTrainedModel:
        """The compact model, once training is done; the trained model stays, with zeros where it is pruned."""
        return self.attachment.compact()

    def save(
        self,
        folder: str | Path,
        tokenizer: PushToHubMixin | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> LogitDifference:
        """Compact, and save as a transformers folder, as `Attachment.save` has it; in one process only."""
        return self.attachment.save(folder, tokenizer, inputs)


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a `state_dict` are equal; extra states are no tensors, and are taken as different."""
    return isinstance(value, Tensor) and isinstance(other, Tensor) and torch.equal(value, other)


def _any_in(parameters: Iterable[Tensor], wanted: set[int]) -> bool:
    return any(id(parameter) in wanted for parameter in parameters)


def _all(schedulers: Iterable[Any]) -> Iterable[Any]:
    """Schedulers, and those that they are chains or sequences of."""
    for scheduler in schedulers:
        yield scheduler
        yield from _all(getattr(scheduler, "_schedulers", ()))
