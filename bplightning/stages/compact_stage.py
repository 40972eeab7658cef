"""The stage of a run that makes its compact model: compaction, checked, refilled if it is to be, saved and reloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning.compaction.equivalence import logit_difference, require_equal
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import save_compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.compaction.portable import as_portable
from bplightning.compaction.saved_models import load_saved
from bplightning.compaction.vocabulary import Corpus, trim_vocabulary
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.reporting.schema import MUCH_LOST, Refilled, Vocabulary
from bplightning.stages.refill import Refill, remove_partial_heads
from bplightning.stages.stage_cache import Notes


@dataclass(frozen=True)
class Filling:
    """How a compact model is refilled.

    Attributes:
        settings: The user's.
        learning_rate: What its learning rate is, where the settings do not say it.
        fill: Does it.
    """

    settings: Refill
    learning_rate: float
    fill: Callable[[PreTrainedModel], PreTrainedModel]


@dataclass(frozen=True)
class Saving:
    """How a compact model is saved, beside what pruning made of it.

    Attributes:
        dtype: Its precision; by default as it was trained.
        vocabulary: A corpus, to keep only the tokens that occur in it; `None` keeps all.
        task_of: From the folder of a model with a tokenizer of its own to the task with that; needed for `vocabulary`.
        portable: Whether it is padded with zeros to widths that config.json can say.
    """

    dtype: torch.dtype | None = None
    vocabulary: Path | None = None
    task_of: Callable[[Path], Task] | None = None
    portable: bool = False


@dataclass(frozen=True)
class Padded:
    """What a portable model was before it was padded.

    Attributes:
        uneven: The compact model.
        changes: Each configuration field that is smaller than the dense model's, with its value there and now.
    """

    uneven: PreTrainedModel
    changes: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Compacted:
    """What the stage has made.

    Attributes:
        model: The compact model.
        task: The task, with the tokenizer that the model is saved with.
        plan: What was kept.
        vocabulary: Tokens kept.
        refilled: What a report says of the refill; `None` without one.
        padded: What it was padded from; `None` where it has its own widths.
    """

    model: PreTrainedModel
    task: Task
    plan: CompactionPlan
    vocabulary: Vocabulary
    refilled: Refilled | None
    padded: Padded | None = None


def make_compact(
    trainer: Trainer,
    task: Task,
    masked: PreTrainedModel,
    out: Path,
    *,
    filling: Filling | None,
    saving: Saving,
    notes: Notes,
    resume: bool,
) -> Compacted:
    """Compact a hardened model, require that it computes the same, refill it, save it and load it again.

    Args:
        trainer: Lightning's trainer, for its devices.
        task: The task.
        masked: The hardened model.
        out: Folder to save to, which appears when it is whole.
        filling: How to refill it; `None` leaves it as it is.
        saving: How to save it.
        notes: Get how far logits differ, by ``masked_compact`` and ``compact_reloaded``.
        resume: Whether to take a model that is in `out` already.

    Raises:
        UserError: A check failed, or there is no vocabulary to trim.
    """
    exact, refilled = (masked, None) if filling is None else _before_refill(task, masked, filling)
    plan = CompactionPlan.of(exact)
    count = 0 if task.tokenizer is None else _tokens(masked)
    tokens = Vocabulary(kept=count, total=count)
    there = resume and trainer.strategy.broadcast(out.is_dir() and any(out.iterdir()))
    if there and "compact_reloaded" in notes.kept:
        return Compacted(_saved(task, out), task, plan, tokens, refilled)
    small: PreTrainedModel = compact(exact, plan)  # type: ignore[assignment]
    equal = require_equal(exact, small, _first_batch(task, exact), what="the compact model")
    notes.keep("masked_compact", asdict(equal))
    if filling is not None:
        small = filling.fill(small)
        nn.Module.to(small, masked.device)  # transformers' own signature of `to` is not typed
    if there:  # the notes on it are lost
        saved = _saved(task, out)
        nn.Module.to(saved, masked.device)
        same = require_equal(small, saved, comparison_inputs(small), what=f"the model in {str(out)!r}")
        notes.keep("compact_reloaded", asdict(same))
        return Compacted(saved, task, plan, tokens, refilled)
    processor = task.processor
    if saving.vocabulary is not None:
        if task.tokenizer is None:
            raise UserError("the task has no text, and so no vocabulary to trim: leave --vocabulary out.")
        trimmed = trim_vocabulary(small, task.tokenizer, Corpus(saving.vocabulary))
        small, processor = trimmed.model, trimmed.tokenizer
        tokens |= {"kept": len(trimmed.kept), "lost": lost_tokens(task, trimmed.kept)}
        if tokens["lost"] > MUCH_LOST:
            rank_zero_warn(
                f"{100 * tokens['lost']:.1f} % of the validation set's tokens do not occur in the corpus "
                f"{str(saving.vocabulary)!r}, so that the model reads them in smaller pieces or as unknown: give a "
                "corpus of the text that it will read, such as the training set."
            )
    if saving.dtype is not None:
        nn.Module.to(small, saving.dtype)
    padded = None
    if saving.portable:
        made = as_portable(small)
        require_equal(small, made.model, comparison_inputs(small), what="the portable model")
        padded = Padded(small, made.changes)
        small = cast(PreTrainedModel, made.model)
    if trainer.is_global_zero:
        save_compact(
            small,
            out,
            processor,
            complete=partial(save_task, task),
            proved=lambda difference: notes.keep("compact_reloaded", asdict(difference)),
        )
    trainer.strategy.barrier()
    if saving.vocabulary is not None:
        assert saving.task_of is not None
        task = saving.task_of(out)
    return Compacted(small, task, plan, tokens, refilled, padded)


def _saved(task: Task, out: Path) -> PreTrainedModel:
    """The compact model that an earlier process of the run saved."""
    try:
        saved: PreTrainedModel = load_saved(task.load_model, out, what="the compact model")
    except UserError as error:
        raise UserError(
            f"{error} Or remove that folder and repeat the command: the model is made again from the last checkpoint."
        ) from error
    return saved


def _before_refill(task: Task, masked: PreTrainedModel, filling: Filling) -> tuple[PreTrainedModel, Refilled]:
    """The model that is compacted for a refill, without the heads that go by its rule, and what a report says of it."""
    settings, exact = filling.settings, masked
    refilled = Refilled(
        max_epochs=settings.max_epochs,
        learning_rate=settings.learning_rate or filling.learning_rate,
        hold_masks=settings.hold_masks,
        heads=settings.heads,
        heads_removed=0,
        logit_difference=None,
    )
    if settings.heads == "any":
        exact = copy.deepcopy(masked)
        refilled["heads_removed"] = len(remove_partial_heads(exact))
        refilled["logit_difference"] = logit_difference(masked, exact, _first_batch(task, masked)).absolute
    return exact, refilled


def lost_tokens(task: Task, kept: Sequence[int]) -> float:
    """The share of the validation set's tokens, special ones apart, that a smaller vocabulary no longer has.

    Args:
        task: The task, with the full tokenizer.
        kept: The tokens that are still there, in its numbering.
    """
    assert task.tokenizer is not None
    special, still = (torch.tensor(sorted(ids)) for ids in (task.tokenizer.all_special_ids, kept))
    lost = total = 0
    for batch in task.val_dataloader():
        ids = task.model_inputs(batch).get("input_ids", torch.empty(0, dtype=torch.long))
        ids = ids[~torch.isin(ids, special)]
        total += ids.numel()
        lost += int((~torch.isin(ids, still)).sum())
    return lost / max(total, 1)


def _first_batch(task: Task, model: PreTrainedModel) -> dict[str, Tensor]:
    """The first batch of the validation set, on the model's device."""
    batch = task.model_inputs(next(iter(task.val_dataloader())))
    return {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}


def _tokens(model: PreTrainedModel) -> int:
    """Rows of the model's token embeddings."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])
