"""Calibrating a strategy on training data between two optimizer steps, the same on all ranks and in a resumed run."""

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
"""Seed of the order of the examples, so that every run calibrates on the same ones."""


class CalibrationBatches:
    """Batches on a device, which can be iterated over several times.

    Args:
        batches: Keyword arguments of the model's ``forward``, on the CPU.
        device: The device of the model.
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
    """Let a strategy calibrate itself during training, on all ranks together.

    Every rank computes from the same examples. Kernels may round differently on each rank, so weights and masks are
    then copied from the first.

    Args:
        trainer: The trainer, with its loader of training data.
        task: The task.
        model: The model that is pruned; the modes of its modules and the random state are restored afterwards.
        strategy: The strategy.
        examples: Number of examples, or all if there are fewer.
        step: Optimizer steps taken, for the message.
    """
    training = [module for module in model.modules() if module.training]
    with isolate_rng():
        batches = CalibrationBatches(shared_batches(trainer, task, examples), next(model.parameters()).device)
        rank_zero_info(f"Calibrating on {sum(map(rows_of, batches.batches))} examples at step {step}.")
        model.eval()
        try:
            strategy.calibrate(model, batches, task.calibration_loss)
        finally:
            for module in training:
                module.training = True
    if trainer.world_size > 1:
        of_both = itertools.chain(*((*part.parameters(), *part.buffers()) for part in (model, strategy)))
        for tensor in of_both:
            torch.distributed.broadcast(tensor.data, src=0)


def shared_batches(trainer: Trainer, task: Task, examples: int) -> list[dict[str, Tensor]]:
    """The first batches of the training set in a fixed order; each rank gets those of all ranks.

    The trainer's own loader is not touched, since it may be inside an epoch.

    Args:
        trainer: The trainer.
        task: The task, which selects the model's inputs from a batch.
        examples: Number of examples, or all if there are fewer; the last batch is whole.

    Returns:
        Tensors on the CPU.
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
    """Only the tensors of `inputs`, without texts and identifiers."""
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def rows_of(batch: dict[str, Tensor]) -> int:
    """Number of examples in a batch."""
    return len(next(iter(batch.values())))


def _apart(loaders: Any) -> Any:
    """The same loaders with separate iterators."""
    found = CombinedLoader(loaders, "max_size_cycle")
    found.flattened = [copy.copy(loader) for loader in found.flattened]
    for loader in found.flattened:
        if isinstance(loader, DataLoader):
            loader._iterator = None  # persistent workers are inside an epoch
    return found


def _samplers(loader: CombinedLoader) -> list[Any]:
    """Samplers with an epoch that can be set."""
    parts = itertools.chain(*((each, getattr(each, "sampler", None)) for each in loader.flattened))
    return [part for part in parts if hasattr(part, "set_epoch") and hasattr(part, "epoch")]
