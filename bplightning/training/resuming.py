"""A resumed run is the run that was interrupted: the same data, the same random numbers, the same steps.

Lightning saves neither random state nor the place in the data. Neither is saved here: before each batch is fetched and
trained on, every generator is seeded anew from the run's seed, the epoch and the batch. What is drawn at other times,
in validation or while a run is set up, then changes nothing, on any number of devices, and the place in the data is a
number of batches.
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
    """Seed Python, numpy, and torch on all its devices from numbers; no device is waited for.

    Args:
        *key: 0 or more each; any other key of as many gives unrelated random numbers.
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
        batches: Batches of it that were trained on.
        finished: Whether these are all of the epoch.
    """

    epoch: int
    batches: int = 0
    finished: bool = False


class RepeatableLoader(CombinedLoader):
    """Any loader of Lightning's, whose batches follow from seed, epoch and batch alone, and which starts at any place.

    Batches before the place are loaded and dropped. That takes seconds where training takes hours, and is exact for
    loaders that are shuffled or not, with a length or none, with augmentation, with a `torch.Generator` of their own,
    which is seeded too, and with worker processes, which begin anew in each epoch, persistent or not. What cannot be
    seen from here is not exact: state that a dataset or sampler keeps from one epoch to the next.

    Ranks fetch with the same random numbers, for a shuffled order is common to all; worker processes, too, draw the
    same on all ranks. What is drawn after that, such as dropout, is each rank's own.

    Args:
        loader: What `train_dataloader` gave.
        seed: The run's seed.
        place: Tells where an iteration starts.
        rank: This process among those that train together.
    """

    def __init__(self, loader: Any, seed: int, place: Callable[[], Place], rank: int = 0) -> None:
        combined = isinstance(loader, CombinedLoader)
        super().__init__(loader.iterables if combined else loader, loader._mode if combined else "max_size_cycle")
        self._seed = seed
        self._place = place
        self._rank = rank

    def __iter__(self) -> Self:
        self._start = self._place()
        self.reset()  # persistent workers would go on with the last epoch's random numbers
        reseed(self._seed, self._start.epoch, 0)
        for loader in self.flattened:
            _set_sampler_epoch(loader, self._start.epoch)
            _seed_generators(loader)
        super().__iter__()
        self._fetched = 0
        if self._start.batches and not self._start.finished:
            rank_zero_info(f"Passing over the {self._start.batches} batches of this epoch that were trained on.")
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
    """What a loader draws its order and its workers' seeds from, where that is not the common generator."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, torch.Generator)]


class Resuming(Callback):
    """Makes training repeatable from any of its checkpoints; every `PruningModule` brings it along."""

    def __init__(self) -> None:
        self._seed = 0
        self._validated = False
        self._resumed_at: Place | None = None
        self._groups: list[dict[str, Any]] | None = None
        self._own: dict[str, Any] | None = None  # what the task itself had where the repeatable loader is put

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put a repeatable loader before the task's own, and checkpoint files that are whole or not there."""
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
        """Take the run's seed and its place, once the checkpoint says that the place is between two optimizer steps."""
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
        """Lightning looks for loaders with a state of their own, and would warn that there are none."""
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a new epoch: not called where one is gone on with."""
        self._resumed_at = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note what the batch changes."""
        # What loggers count steps by: this number, but that Lightning restores it in some cases only.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note, for checkpoints that follow, that this place was validated."""
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
    """Make Lightning's saved progress say "between two optimizer steps", whatever hook the checkpoint was written in.

    Lightning's own rules for going on depend on the hook: they skip the validation that was due after the last batch,
    finish one that was cut off with half of its batches, or lose the gradients of batches gathered for the next step.
    From the state written here it does one thing: validate if that is due and was not done, and go on training.

    Args:
        fit_loop: The checkpoint's progress of Lightning's fit loop, changed in place.
        optimizer_steps: Optimizer steps taken.
        accumulated: Batches of an optimizer step; those of a step not yet taken are trained on again.
        validated: Whether validation was done after the last batch.

    Returns:
        The place in the data.
    """
    epochs, batches = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    finished: bool = batches["is_last_batch"]
    back = 0 if finished else batches["current"]["processed"] % accumulated
    for part in ("total", "current"):
        epoch = epochs[part]["started"]
        epochs[part] |= {"ready": epoch, "started": epoch, "processed": epoch - 1, "completed": epoch - 1}
        done = batches[part]["processed"] - back
        batches[part] |= {"ready": done, "started": done, "processed": done, "completed": done}
    # A batch of validation that was begun and not ended makes Lightning validate; none begun says that it has.
    begun = int(not validated and back == 0)
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    validation["total"] |= {"ready": begun, "started": begun, "processed": 0, "completed": 0}
    validation["current"] |= {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = optimizer_steps - 1  # as in a validation
    return Place(epochs["current"]["processed"], batches["current"]["processed"], finished)
