"""Training on several ranks: masks must be identical on all of them, or the run ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn

from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.masks.masking import Mask

HASH_BYTES = 8
"""Bytes of a hash."""


def mask_hashes(strategy: PruningStrategy) -> dict[str, str]:
    """Name of each mask to a hash of its grid and scores, 16 hexadecimal digits."""
    return {name: _hash(mask) for name, mask in strategy.masks.items()}  # type: ignore[arg-type]


def rank_hashes(trainer: Trainer, strategy: PruningStrategy) -> list[str]:
    """One hash of all masks for each rank; called on all ranks together.

    Args:
        trainer: The trainer.
        strategy: The strategy, with its masks.
    """
    return [
        hashlib.blake2b("".join(hashes.values()).encode(), digest_size=HASH_BYTES).hexdigest()
        for hashes in _gathered(trainer, strategy)
    ]


class MasksAgree(Callback):
    """Ends a run whose masks or scores differ between ranks; every `PruningModule` adds it.

    Each rank computes scores, schedule and masks itself, from gradients averaged over all ranks. If they differed,
    ranks would train different networks. Hashes are compared at each validation and at the end.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, if the validation is part of training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            require_agreement(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare before the model is compacted."""
        require_agreement(trainer, pl_module)


def require_agreement(trainer: Trainer, module: Any) -> None:
    """Refuse masks that differ between ranks.

    Args:
        trainer: The trainer.
        module: A `PruningModule`.

    Raises:
        UserError: Masks differ; the message names them and the ranks.
    """
    first, *others = _gathered(trainer, module.strategy)
    for rank, hashes in enumerate(others, start=1):
        different = [name for name in first if hashes.get(name) != first[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{len(different)} of {len(first)} masks differ between rank 0 and rank {rank} at step "
                f"{trainer.global_step}, the first {name!r} (hash {first[name]} and {hashes.get(name)}): ranks train "
                f"different networks. The strategy, {type(module.strategy).__name__}, must not set masks from "
                "anything that differs between ranks, such as batches or random numbers."
            )


def require_supported(trainer: Trainer) -> None:
    """Refuse a trainer strategy with which a run would be wrong or could not end.

    Args:
        trainer: The trainer.

    Raises:
        UserError: Weights are sharded, so that no rank has a whole weight to mask, or processes end with training.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy) or isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            f"trainer.strategy is {name}, by which a rank may hold parts of weights only, and masks, scores and "
            "compaction need whole ones: give trainer.strategy ddp, with trainer.accumulate_grad_batches, activation "
            "checkpointing or trainer.precision bf16-mixed where memory is short."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            f"trainer.strategy is {name} with processes that end when training does, and what was pruned is compacted "
            "and measured after that: give trainer.strategy ddp."
        )


LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out", "timeout", "nccl error")
"""Parts of torch's messages, in lower case, when another rank no longer answers."""


@contextmanager
def lost_ranks_named(trainer: Trainer, *, remedy: str) -> Iterator[None]:
    """Report a lost rank in one line instead of torch's traceback.

    Args:
        trainer: The trainer.
        remedy: How to resume.

    Raises:
        UserError: Another rank no longer answers.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if trainer.world_size == 1 or not any(sign in words for sign in LOST):
            raise
        raise UserError(
            f"rank {trainer.global_rank} of {trainer.world_size} lost another rank at step {trainer.global_step}, "
            f"which was stopped or failed: see its own output. {remedy}"
        ) from error


def _gathered(trainer: Trainer, strategy: PruningStrategy) -> list[dict[str, str]]:
    hashes = mask_hashes(strategy)
    if trainer.world_size == 1:
        return [hashes]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, hashes)
    return everyone


def _hash(mask: Mask) -> str:
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for value in (mask.kept, mask.scores):
        if value is not None:
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
