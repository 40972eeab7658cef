"""Learning experts from a teacher's: each one gives what the teacher's gives, for the tokens that go to it.

MoE-Pruner's expert-wise distillation (arXiv 2410.12013): beside the task's loss, the sum over layers and experts of
the mean squared distance between an expert's output and the teacher's. Its weight is a constant (`alpha_experts`),
where the paper has the quotient of the two losses as they are at the beginning. The paper does not say whose inputs
both get. Here it is the pruned model's, on the tokens that its own router sends to the expert: so that an expert is
compared with what it is to replace where it is used, and nothing of the teacher runs but these experts.

Legend: `T` tokens of a batch, `K` experts a token goes to, `H` hidden size.
"""

from __future__ import annotations

import operator
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from bplightning.errors import UserError
from bplightning.layout.groups import FeedForwardGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.routing import routers_of

Pairs = list[tuple[FeedForwardGroup, FeedForwardGroup]]
"""Experts of the model that learns, each with the teacher's."""


class ExpertDistillation:
    """Compares the experts of a model with a teacher's, as the model runs.

    Args:
        student: The model that learns, with masks or without.
        teacher: The teacher; as many experts in each layer, of the same input and output size, of any width.

    Raises:
        UserError: One of both has no experts, their layers, experts or sizes differ, or the student computes its layers
            twice.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        if getattr(student, "is_activation_checkpointing", False):
            raise UserError(
                "alpha_experts is above 0, and with activation_checkpointing experts are computed twice, once after "
                "their distance was counted: leave one of both out."
            )
        self._models: tuple[Any, Any] = student, teacher
        self._distances: list[Tensor] = []
        # Copies of the model have copies of its hooks: they must hold no teacher, and mean nothing when this is gone.
        there = weakref.ref(self)
        hooks = [
            student.get_submodule(module).register_forward_pre_hook(partial(_tell, there, pairs))
            for module, pairs in _paired(student, teacher).items()
        ]
        weakref.finalize(self, _remove, hooks)

    def loss(self) -> Tensor:
        """The sum over layers and experts, for the forward passes since it was asked last."""
        distances, self._distances = self._distances, []
        return torch.stack(distances).sum()

    def see(self, pairs: Pairs, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Count the distances of a layer's experts, where the model is being trained.

        Args:
            pairs: The layer's experts.
            module: What holds the model's.
            inputs: What it is given: hidden states ``(T, H)``, indices of experts and their weights ``(T, K)``.
        """
        if not (module.training and torch.is_grad_enabled()):
            return
        hidden_TH, indices_TK, _ = inputs
        hidden_TH = hidden_TH.detach()  # what an expert gives is to be learned, not what it gets
        student, teacher = self._models
        own = {name: getattr(module, name) for name in module._parameters}  # masked weights, each computed once
        for mine, wanted in pairs:
            index = mine.down.expert
            assert index is not None
            tokens, _ = (indices_TK == index).nonzero(as_tuple=True)
            theirs = teacher.get_submodule(wanted.down.module)._parameters
            got_TH = _output(student, mine, own, hidden_TH[tokens])
            with torch.no_grad():
                wanted_TH = _output(teacher, wanted, theirs, hidden_TH[tokens].to(theirs[wanted.down.parameter].dtype))
            # The sum over no token is 0, and its gradient, too: every expert takes part, as DDP wants it.
            square = functional.mse_loss(got_TH.float(), wanted_TH.float(), reduction="sum")
            self._distances.append(square / max(got_TH.numel(), 1))


def _tell(there: weakref.ref[ExpertDistillation], pairs: Pairs, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    found = there()
    if found is not None:
        found.see(pairs, module, inputs)


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _output(model: nn.Module, expert: FeedForwardGroup, stacked: Any, inputs_TH: Tensor) -> Tensor:
    """What an expert gives for tokens, before its router weighs that, ``(T, H)``."""
    first, *others = (functional.linear(inputs_TH, member.view(stacked[member.parameter])) for member in expert.up)
    units = operator.attrgetter(expert.activation)(model)(first)
    for other in others:
        units = units * other
    return functional.linear(units, expert.down.view(stacked[expert.down.parameter]))


def _paired(student: nn.Module, teacher: nn.Module) -> dict[str, Pairs]:
    """By the student's module that holds them, its experts with the teacher's."""
    layers = [list(routers_of(PrunableLayout.of(model)).values()) for model in (student, teacher)]
    sizes = [
        [(experts[0].name, len(experts), experts[0].down.weight(model).shape[0]) for experts in found]
        for model, found in zip((student, teacher), layers, strict=True)
    ]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise UserError(
            f"experts can be learned from a teacher with the same ones, layer by layer; the model has {_said(sizes[0])}"
            f", the teacher {_said(sizes[1])}: take the dense model that it was pruned from, as long as no whole "
            "expert went, or leave alpha_experts at 0."
        )
    return {mine[0].down.module: list(zip(mine, wanted, strict=True)) for mine, wanted in zip(*layers, strict=True)}


def _said(sizes: list[tuple[str, int, int]]) -> str:
    counts = sorted({count for _, count, _ in sizes})
    return f"{len(sizes)} layers of {', '.join(map(str, counts))} experts" if sizes else "no experts"
