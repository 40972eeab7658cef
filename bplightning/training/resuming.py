"""Resuming exactly: a resumed run has the same data, random numbers and steps as the run that was interrupted.

Lightning saves neither the random state nor the place in the data, and neither is saved here. Instead, before each
batch is fetched, every generator is seeded from the run's seed, the epoch and the batch. So random numbers drawn at
other times, such as in validation, change nothing, on any number of devices, and the place in the data is a number of
batches.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info

from bplightning.training.checkpoint_files import WholeFiles, require_same_groups


def reseed(*key: int) -> None:
    """Seed Python, numpy, and torch on all devices; the host waits for none.

    Args:
        *key: Numbers, 0 or more each; different keys of the same length give unrelated random numbers.
    """
    for_torch, for_others = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    torch.manual_seed(for_torch)
    np.random.seed(for_others % 2**32)
    random.seed(for_others)


@dataclass(frozen=True)
class Place:
    """A place in the data.

    Attributes:
        epoch: Epoch, from 0.
        batches: Number of its batches that were trained on.
        finished: Whether these are all batches of the epoch.
    """

    epoch: int
    batches: int = 0
    finished: bool = False


class RepeatableLoader(CombinedLoader):
    """A loader whose batches depend only on seed, epoch and batch, and which can start at any place.

    Batches before the place are loaded and dropped, which takes seconds where training takes hours. It is exact for
    loaders with or without shuffling, length, augmentation, a `torch.Generator` of their own (which is seeded too) and
    worker processes (which are restarted in each epoch). It is not exact for state that a dataset or sampler keeps from
    one epoch to the next.

    All ranks fetch with the same random numbers, since a shuffled order is common to all, and so do their worker
    processes. Random numbers drawn after fetching, such as for dropout, differ between ranks.

    Args:
        loader: The result of `train_dataloader`.
        seed: The run's seed.
        place: Returns the place where an iteration starts.
        rank: Rank of this process.
    """

    def __init__(self, loader: Any, seed: int, place: Callable[[], Place], rank: int = 0) -> None:
        combined = isinstance(loader, CombinedLoader)
        super().__init__(loader.iterables if combined else loader, loader._mode if combined else "max_size_cycle")
        self._seed = seed
        self._place = place
        self._rank = rank

    def __iter__(self) -> Self:
        self._start = self._place()
        self.reset()  # persistent workers would continue with the last epoch's random numbers
        reseed(self._seed, self._start.epoch, 0)
        for loader in self.flattened:
            _set_sampler_epoch(loader, self._start.epoch)
            _seed_generators(loader)
        super().__iter__()
        self._fetched = 0
        if self._start.batches and not self._start.finished:
            rank_zero_info(f"Skipping the {self._start.batches} batches of this epoch that were trained on.")
            for _ in range(self._start.batches):
                next(self)
        return self

    def __next__(self) -> Any:
        if self._start.finished:
            raise StopIteration
        self._fetched += 1
        reseed(self._seed, self._start.epoch, self._fetched)
        batch = super().__next__()
        if self._rank:
            reseed(self._seed, self._start.epoch, self._fetched, self._rank)
        return batch


def _seed_generators(loader: Any) -> None:
    for generator in generators_of(loader):
        generator.manual_seed(int(torch.randint(2**62, ())))


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators of a loader's order and its workers' seeds, other than the global one."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, torch.Generator)]


class Resuming(Callback):
    """Makes training repeatable from any of its checkpoints; every `PruningModule` adds it."""

    def __init__(self) -> None:
        self._seed = 0
        self._validated = False
        self._resumed_at: Place | None = None
        self._groups: list[dict[str, Any]] | None = None
        self._own: dict[str, Any] | None = None  # the task's own attribute that the repeatable loader replaces

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the task's loader by a repeatable one, and write checkpoint files whole."""
        WholeFiles.install(trainer)
        if stage != "fit":
            return
        self._resumed_at = self._groups = None
        self._seed = trainer.strategy.broadcast(torch.initial_seed())
        task = trainer.datamodule  # type: ignore[attr-defined]
        if task is not None:
            self._release(trainer)
            self._own = {name: value for name, value in vars(task).items() if name == "train_dataloader"}
            request, rank = task.train_dataloader, trainer.global_rank
            task.train_dataloader = lambda: RepeatableLoader(request(), self._seed, lambda: self._place(trainer), rank)

    def _place(self, trainer: Trainer) -> Place:
        return self._resumed_at or Place(trainer.current_epoch)

    # -- the state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "validated": self._validated}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the run's seed and its place, which `settle` moves between two optimizer steps."""
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != TrainerFn.FITTING or state is None:
            return
        self._seed = state["seed"]
        self._validated = state["validated"]
        self._groups = checkpoint["optimizer_states"][0]["param_groups"]
        self._resumed_at = settle(
            checkpoint["loops"]["fit_loop"],
            optimizer_steps=checkpoint["global_step"],
            accumulated=trainer.accumulate_grad_batches,
            validated=self._validated,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the state of another optimizer before Lightning reads it."""
        if self._groups is not None:
            require_same_groups(self._groups, trainer.optimizers[0].param_groups, path=trainer.ckpt_path)
            self._groups = None

    # -- the course of training ----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide Lightning's warning that loaders have no state, which they do not need here."""
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new epoch begins; Lightning does not call this for an epoch that is resumed."""
        self._resumed_at = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record that the model has changed since its last validation."""
        # Loggers count steps by this number, which Lightning restores only in some cases.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record for later checkpoints that this place was validated."""
        self._validated = not trainer.sanity_checking

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the task its own loader back."""
        self._release(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the task its own loader back."""
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        if self._own is not None:
            task: dict[str, Any] = trainer.datamodule.__dict__  # type: ignore[attr-defined]
            task.pop("train_dataloader", None)
            task.update(self._own)
            self._own = None


def settle(fit_loop: dict[str, Any], *, optimizer_steps: int, accumulated: int, validated: bool) -> Place:
    """Set Lightning's saved progress to a place between two optimizer steps, whichever hook wrote the checkpoint.

    Lightning's own rules for resuming depend on the hook: they skip a validation that was due after the last batch,
    finish an interrupted one with half of its batches, or lose gradients accumulated for the next step. From the state
    written here, Lightning validates if that is due and was not done, and continues training.

    Args:
        fit_loop: Progress of Lightning's fit loop in the checkpoint, changed in place.
        optimizer_steps: Optimizer steps taken.
        accumulated: Batches per optimizer step; those of an unfinished step are trained on again.
        validated: Whether validation was done after the last batch.

    Returns:
        The place in the data.
    """
    epochs, batches = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    finished: bool = batches["is_last_batch"]
    back = 0 if finished else batches["current"]["processed"] % accumulated
    for part in ("total", "current"):
        epoch = epochs[part]["started"]
        ended = max(0, epoch - 1)  # none has begun where a finder of Lightning saves its checkpoint
        epochs[part] |= {"ready": epoch, "started": epoch, "processed": ended, "completed": ended}
        done = batches[part]["processed"] - back
        batches[part] |= {"ready": done, "started": done, "processed": done, "completed": done}
    # A validation batch that was started and not finished makes Lightning validate; none means that it has.
    begun = int(not validated and back == 0)
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    validation["total"] |= {"ready": begun, "started": begun, "processed": 0, "completed": 0}
    validation["current"] |= {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = optimizer_steps - 1  # as in a validation
    return Place(epochs["current"]["processed"], batches["current"]["processed"], finished)
