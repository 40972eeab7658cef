"""Distillation: the pruned model learns from a fine-tuned teacher, in addition to the task's own loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning.contracts.capabilities import LearnsFromTeacher
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.distillation.experts import ExpertDistillation
from bplightning.distillation.logit_cache import LogitCache
from bplightning.distillation.teachers import TeacherInputs, load_teacher
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import stream_width

BASELINE = "baseline"
"""The teacher's name that means the run's dense baseline."""


class Distillation:
    """Settings of distillation (Hinton et al. 2015, arXiv 1503.02531; as in arXiv 2109.04838, section 4.1).

    The loss is ``alpha_ce * task loss + alpha_teacher * T^2 * KL(teacher / T, student / T)``, plus the strategy's
    penalty. `alpha_hidden` adds the mean squared distance of hidden states, and `alpha_experts` that of the outputs of
    experts (`bplightning.distillation.experts`).

    Args:
        teacher: A fine-tuned model of the same task, folder or hub name, of any size or family with the same labels and
            the same tokens; or `baseline`, the dense model of this run. Default: none, only the task's loss is used.
        temperature: Both models' logits are divided by it before they are compared; above 0.
        alpha_ce: Weight of the task's own loss, 0 or more.
        alpha_teacher: Weight of the distance to the teacher's logits, 0 or more.
        alpha_hidden: Weight of the distance of hidden states, 0 or more; layers are matched evenly from the top, and
            both models must have the same width.
        alpha_experts: Weight of the distance of experts' outputs, summed over layers and experts, 0 or more; for models
            with a mixture of experts and a teacher with the same number of them. MoE-Pruner's loss has alpha_ce 1 and
            alpha_teacher 0, and as this weight the quotient of task_loss and experts_loss at the beginning, as logged.
        cache_megabytes: Memory for the teacher's logits, in millions of bytes on each rank: cached examples are not
            computed again in later epochs. The default 0 caches none. On a GPU each step then waits for the host. A
            resumed run starts with an empty cache, and repeats the interrupted one only within float error.
    """

    def __init__(
        self,
        teacher: str | None = None,
        temperature: float = 2.0,
        alpha_ce: float = 0.1,
        alpha_teacher: float = 0.9,
        alpha_hidden: float = 0.0,
        alpha_experts: float = 0.0,
        cache_megabytes: float = 0.0,
    ) -> None:
        if not temperature > 0:
            raise UserError(f"distillation's temperature is {temperature:g}; it must be above 0. The papers take 2.")
        if not cache_megabytes >= 0:
            raise UserError(f"distillation's cache_megabytes is {cache_megabytes:g}; it must be 0 (none) or more.")
        if cache_megabytes and alpha_hidden:
            raise UserError(
                "distillation's cache_megabytes caches logits, but with alpha_hidden the teacher computes every batch: "
                "leave one of both at 0."
            )
        weights = {"alpha_ce": alpha_ce, "alpha_teacher": alpha_teacher, "alpha_hidden": alpha_hidden}
        weights |= {"alpha_experts": alpha_experts}
        for name, value in weights.items():
            if not value >= 0:
                raise UserError(f"distillation's {name} is {value:g}; it must be 0 or more.")
        if teacher is not None and not any(weights.values()):
            raise UserError("distillation's weights are all 0, so nothing would be learned: give one above 0.")
        self.teacher = teacher
        self.temperature = temperature
        self.alpha_ce = alpha_ce
        self.alpha_teacher = alpha_teacher
        self.alpha_hidden = alpha_hidden
        self.alpha_experts = alpha_experts
        self.cache_megabytes = cache_megabytes

    def settings(self) -> dict[str, Any] | None:
        """The settings for the report; `None` where there is no teacher."""
        if self.teacher is None:
            return None
        return vars(self) | {"teacher": Path(self.teacher).name if Path(self.teacher).is_dir() else self.teacher}

    def with_teacher(self, name: str) -> Distillation:
        """The same with another teacher; these settings stay as they are.

        Args:
            name: The teacher's folder or hub name.
        """
        settings = copy.copy(self)
        settings.teacher = name
        return settings


class Teacher:
    """A teacher in use: frozen, in evaluation mode, and part of no module, so that neither checkpoints nor DDP hold it.

    Args:
        settings: Settings of distillation; `settings.teacher` is a folder or hub name.
        task: The task, which loads the teacher and compares logits.
        student: The model that learns.
        strategy: The pruning strategy, which may also learn from the teacher's layers; `None` for no pruning.

    Attributes:
        experts_loss: The distance of experts' outputs in the last batch, unweighted, for the log; `None` without one.

    Raises:
        UserError: The teacher does not fit the student or the settings.
    """

    def __init__(
        self, settings: Distillation, task: Task, student: PreTrainedModel, strategy: PruningStrategy | None = None
    ) -> None:
        assert settings.teacher is not None
        self.settings = settings
        self.of_layers = None if strategy is None else strategy.capability(LearnsFromTeacher)
        if settings.cache_megabytes and self.of_layers is not None:
            raise UserError(
                "distillation's cache_megabytes caches logits, but with a strategy that learns from layers the teacher "
                "computes every batch: leave cache_megabytes at 0."
            )
        self.task = task
        self.model = load_teacher(settings.teacher, task, student)
        self.inputs = TeacherInputs(self.model, student, task, name=settings.teacher)
        widths = [states_width(model) for model in (student, self.model)]
        if settings.alpha_hidden and widths[0] != widths[1]:
            raise UserError(
                f"alpha_hidden is {settings.alpha_hidden:g}, but the teacher's hidden states have {widths[1]} numbers "
                f"and the model's {widths[0]}: use a teacher of the same width, or leave alpha_hidden at 0."
            )
        if self.of_layers is not None:
            self.of_layers.meet_teacher(self.model)
        self.model.requires_grad_(False).eval()
        self.experts = ExpertDistillation(student, self.model) if settings.alpha_experts else None
        self.experts_loss: Tensor | None = None
        self.cache = LogitCache(settings.cache_megabytes, self.model.config.num_labels or 0)

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device; on a GPU it computes in half precision."""
        half = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
        nn.Module.to(self.model, device, half if device.type == "cuda" else None)

    @property
    def student_options(self) -> dict[str, Any]:
        """Additional arguments of the student's `forward`."""
        wanted = self.settings.alpha_hidden or self.of_layers is not None
        return {"output_hidden_states": True} if wanted else {}

    def loss(self, task_loss: Tensor, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss to train with, and the teacher's unweighted part of it, for the log.

        Args:
            task_loss: The task's own loss.
            outputs: Outputs of the student.
            batch: Their batch.
        """
        inputs, given = self.task.model_inputs(batch), None
        with torch.no_grad():  # not inference mode: autograd saves the teacher's outputs
            if self.settings.cache_megabytes:
                logits = self.cache.logits(inputs, self._decided)
            else:
                given = self.model(**self.inputs(inputs), **self.student_options)
                logits = self.task.teacher_logits(self.model, given, batch)
        own = self.task.logits(outputs, batch)
        decided = self.task.distillation_loss(own, logits, temperature=self.settings.temperature)
        loss = self.settings.alpha_ce * task_loss + self.settings.alpha_teacher * decided
        if self.settings.alpha_hidden:
            loss = loss + self.settings.alpha_hidden * self._hidden_loss(outputs, given, batch)
        if self.experts is not None:
            distance = self.experts.loss()
            self.experts_loss = distance.detach()
            loss = loss + self.settings.alpha_experts * distance
        if self.of_layers is not None:
            states, wanted = _hidden_states(outputs), _hidden_states(given)
            mask = batch.get("attention_mask")
            loss = loss + self.of_layers.layer_loss(states, wanted, mask if _is_of(mask, states[0]) else None)
        return loss, decided

    def _decided(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the teacher makes of the student's inputs."""
        return self.task.teacher_logits(self.model, self.model(**self.inputs(inputs)), inputs)

    def _hidden_loss(self, outputs: Any, given: Any, batch: dict[str, Any]) -> Tensor:
        """Mean squared distance of hidden states ``(B, L, hidden size)`` without padding; layers are matched evenly."""
        states, wanted = _hidden_states(outputs), _hidden_states(given)
        layers, of_teacher = len(states) - 1, len(wanted) - 1  # the first is that of the embeddings
        mask = batch.get("attention_mask")
        distances = []
        for layer in range(1, layers + 1):
            target = wanted[round(layer * of_teacher / layers)].to(states[layer].dtype)
            square = (states[layer] - target).square().mean(-1)
            kept = torch.ones_like(square) if mask is None or mask.shape != square.shape else mask
            distances.append((square * kept).sum() / kept.sum())
        return torch.stack(distances).mean()


def states_width(model: nn.Module) -> int:
    """Width of a hidden state; a compact model may be narrower than the `hidden_size` of its configuration.

    Args:
        model: A model; for an architecture that cannot be pruned, its configuration is used.
    """
    try:
        return stream_width(PrunableLayout.of(model))
    except UserError:
        config: Any = model.config
        return int(config.hidden_size)


def _is_of(mask: Any, states_BLH: Tensor) -> bool:
    """Whether a mask has an entry for each token of the states."""
    return isinstance(mask, Tensor) and mask.shape == states_BLH.shape[:2]


def _hidden_states(outputs: Any) -> tuple[Tensor, ...]:
    """Hidden states of the embeddings and after each layer; of an encoder-decoder, the encoder's."""
    states = getattr(outputs, "hidden_states", None)
    return outputs.encoder_hidden_states if states is None else states
