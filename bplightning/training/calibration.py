"""Training data shown to a strategy between two optimizer steps, the same on all ranks and in a resumed run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bplightning.contracts.capabilities import OneShot
from bplightning.contracts.task import Task
from bplightning.training.resuming import Place, RepeatableLoader, generators_of

SEED = 0
"""Of the order of the examples: that of a run's first epoch would be another one in each run, for no reason."""


class CalibrationBatches:
    """Batches, as often as they are asked for, on a device.

    Args:
        batches: What the model's ``forward`` takes, on the processor.
        device: Where the model is.
    """

    def __init__(self, batches: list[dict[str, Tensor]], device: torch.device) -> None:
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.batches:
            yield {name: value.to(self.device) for name, value in batch.items()}


def calibrate(trainer: Trainer, task: Task, model: nn.Module, strategy: OneShot, *, examples: int, step: int) -> None:
    """Let a strategy calibrate itself, in the midst of training; on all ranks together.

    Every rank computes from the same examples. Kernels may round otherwise on one rank than on another, so weights and
    masks are then those of the first.

    Args:
        trainer: The trainer, with its loader of training data.
        task: The task.
        model: The model that is pruned; modes of its modules and random numbers are as before afterwards.
        strategy: The strategy.
        examples: How many examples to show it, as far as there are so many.
        step: Optimizer steps taken, to be told to the user.
    """
    training = [module for module in model.modules() if module.training]
    with isolate_rng():
        batches = CalibrationBatches(shared_batches(trainer, task, examples), next(model.parameters()).device)
        rank_zero_info(f"Calibrating on {sum(map(rows_of, batches.batches))} examples at step {step}.")
        model.eval()
        try:
            strategy.calibrate(model, batches, task.loss)
        finally:
            for module in training:
                module.training = True
    if trainer.world_size > 1:
        of_both = itertools.chain(*((*part.parameters(), *part.buffers()) for part in (model, strategy)))
        for tensor in of_both:
            torch.distributed.broadcast(tensor.data, src=0)


def shared_batches(trainer: Trainer, task: Task, examples: int) -> list[dict[str, Tensor]]:
    """The first batches of the training set in an order of their own, those of all ranks on each of them.

    The trainer's own loader is not touched: it may be in the midst of an epoch.

    Args:
        trainer: The trainer.
        task: The task, which says what of a batch its model takes.
        examples: How many examples, as far as there are so many; the last batch is whole.

    Returns:
        Tensors on the processor.
    """
    loader = RepeatableLoader(_apart(trainer.train_dataloader), SEED, lambda: Place(0))
    states = [(generator, generator.get_state()) for each in loader.flattened for generator in generators_of(each)]
    epochs = [(sampler, sampler.epoch) for sampler in _samplers(loader)]
    own: list[dict[str, Tensor]] = []
    share, seen = -(-examples // trainer.world_size), 0
    for batch, *_ in loader:
        own.append(tensors(task.model_inputs(trainer.precision_plugin.convert_input(batch))))
        seen += rows_of(own[-1])
        if seen >= share:
            break
    loader.reset()  # worker processes, if there are any, end here
    for generator, state in states:
        generator.set_state(state)
    for sampler, epoch in epochs:
        sampler.set_epoch(epoch)
    if trainer.world_size == 1:
        return own
    of_all: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(of_all, own)
    return [batch for of_rank in of_all for batch in of_rank]


def tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without what is no tensor, such as texts and identifiers."""
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def rows_of(batch: dict[str, Tensor]) -> int:
    """Examples of a batch."""
    return len(next(iter(batch.values())))


def _apart(loaders: Any) -> Any:
    """The same loaders, but with iterators of their own."""
    found = CombinedLoader(loaders, "max_size_cycle")
    found.flattened = [copy.copy(loader) for loader in found.flattened]
    for loader in found.flattened:
        if isinstance(loader, DataLoader):
            loader._iterator = None  # persistent workers are in the midst of an epoch
    return found


def _samplers(loader: CombinedLoader) -> list[Any]:
    """Samplers that an epoch is told to."""
    parts = itertools.chain(*((each, getattr(each, "sampler", None)) for each in loader.flattened))
    return [part for part in parts if hasattr(part, "set_epoch") and hasattr(part, "epoch")]
