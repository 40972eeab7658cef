"""Distilling experts: each one learns the output of the teacher's expert for the tokens that are sent to it.

This is MoE-Pruner's expert-wise distillation (arXiv 2410.12013): it adds to the task's loss the mean squared distance
between the outputs of an expert and the teacher's, summed over layers and experts. Its weight is a constant
(`alpha_experts`), where the paper uses the initial quotient of the two losses. The paper does not say whose inputs both
get. Here both get the pruned model's, for the tokens that its own router sends to the expert: so an expert is compared
where it is used, and only these experts of the teacher run.

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
"""Experts of the student, each with the teacher's."""


class ExpertDistillation:
    """Compares the experts of a model with a teacher's while the model runs.

    Args:
        student: The model that learns, with masks or without.
        teacher: The teacher, with the same number of experts in each layer, the same input and output size, and any
            width.

    Raises:
        UserError: One of both has no experts, their layers, experts or sizes differ, or the student computes its layers
            twice.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        if getattr(student, "is_activation_checkpointing", False):
            raise UserError(
                "alpha_experts is above 0, but with activation_checkpointing experts are computed twice, once after "
                "their distance was counted: leave one of both out."
            )
        self._models: tuple[Any, Any] = student, teacher
        self._distances: list[Tensor] = []
        # Copies of the model copy its hooks: these must not hold the teacher, and do nothing once this object is gone.
        there = weakref.ref(self)
        hooks = [
            student.get_submodule(module).register_forward_pre_hook(partial(_tell, there, pairs))
            for module, pairs in _paired(student, teacher).items()
        ]
        weakref.finalize(self, _remove, hooks)

    def loss(self) -> Tensor:
        """The sum over layers and experts, for the forward passes since the last call."""
        distances, self._distances = self._distances, []
        return torch.stack(distances).sum()

    def see(self, pairs: Pairs, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Count the distances of a layer's experts during training.

        Args:
            pairs: The layer's experts.
            module: The module with the student's experts.
            inputs: Its inputs: hidden states ``(T, H)``, indices of experts and their weights ``(T, K)``.
        """
        if not (module.training and torch.is_grad_enabled()):
            return
        hidden_TH, indices_TK, _ = inputs
        hidden_TH = hidden_TH.detach()  # only the expert learns, not the layers before it
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
            # The sum over no token is 0 with gradient 0, so every expert takes part, as DDP requires.
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
    """Output of an expert before its router weights it, ``(T, H)``."""
    first, *others = (functional.linear(inputs_TH, member.view(stacked[member.parameter])) for member in expert.up)
    units = operator.attrgetter(expert.activation)(model)(first)
    for other in others:
        units = units * other
    return functional.linear(units, expert.down.view(stacked[expert.down.parameter]))


def _paired(student: nn.Module, teacher: nn.Module) -> dict[str, Pairs]:
    """The student's experts with the teacher's, by the student's module that holds them."""
    layers = [list(routers_of(PrunableLayout.of(model)).values()) for model in (student, teacher)]
    sizes = [
        [(experts[0].name, len(experts), experts[0].down.weight(model).shape[0]) for experts in found]
        for model, found in zip((student, teacher), layers, strict=True)
    ]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise UserError(
            f"alpha_experts needs a teacher with the same experts in each layer; the model has {_counted(sizes[0])}, "
            f"the teacher {_counted(sizes[1])}: use the dense model as teacher, if no whole expert was removed, or "
            "leave alpha_experts at 0."
        )
    return {mine[0].down.module: list(zip(mine, wanted, strict=True)) for mine, wanted in zip(*layers, strict=True)}


def _counted(sizes: list[tuple[str, int, int]]) -> str:
    counts = sorted({count for _, count, _ in sizes})
    return f"{len(sizes)} layers of {', '.join(map(str, counts))} experts" if sizes else "no experts"
