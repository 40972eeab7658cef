"""What a run is asked for: one record, made where the request comes in and handed down to every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bplightning.stages.alignment import Alignment
from bplightning.stages.refill import Refill

MAX_LOSS = 0.5
"""By default; half a point where scores are in per cent."""

AS_PRUNED = Alignment()
"""Widths as pruning left them."""


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked for, besides its task, strategy and trainer.

    Attributes:
        command: The command that repeats the run, for the report; empty where there is none.
        seed: The seed that all random numbers follow from; `None` where none was set.
        baseline: The dense model to compare with: ``train`` to fine-tune one first with the same settings, ``none``, or
            the folder of a saved one; for `prune` also ``model``, the model that is pruned.
        start: What pruning starts from: ``pretrained``, the task's model as it is, or ``baseline``, the fine-tuned
            dense one where there is one.
        alignment: Which of the removed feed-forward units are put back, for widths that suit the hardware; by default
            none.
        refill: How the compact model is fine-tuned; `None`, which settings with no epochs become, leaves it as it is.
        quantize: ``int8`` or ``int8-static`` to evaluate and time the compact model in 8 bits, too; by default it is
            not.
        max_loss: What ``int8-static`` may lose of the compact model's score, in the metric's own unit.
        resume: Whether to continue from what the run's folder holds of a run with the same settings.
        ckpt_path: Checkpoint to continue from, as `Trainer.fit` takes it.
        weights_only: How a checkpoint is read, as `Trainer.fit` takes it.
    """

    command: str = ""
    seed: int | None = None
    baseline: str = "none"
    start: str = "pretrained"
    alignment: Alignment = AS_PRUNED
    refill: Refill | None = None
    quantize: str | None = None
    max_loss: float = MAX_LOSS
    resume: bool = False
    ckpt_path: str | Path | None = None
    weights_only: bool | None = None

    def __post_init__(self) -> None:
        if self.refill is not None and not self.refill.max_epochs:
            object.__setattr__(self, "refill", None)

    @property
    def stages(self) -> tuple[str, ...]:
        """The run's stages in their order, as its progress names them."""
        before, after = self.baseline == "train", self.refill is not None
        return (*(["baseline"] if before else []), "prune", "compact", *(["refill"] if after else []), "evaluate")

    def stage(self, name: str) -> str:
        """A stage with its place among all, such as ``stage 2/5 prune``.

        Args:
            name: One of `stages`.
        """
        return f"stage {self.stages.index(name) + 1}/{len(self.stages)} {name}"


PLAIN = RunRequest()
"""A run without a baseline or further stages."""
