"""Simplified networks: LayerNorm -> NoNorm and GELU -> ReLU, blended in while a model trains (arXiv 2109.04838).

Legend: `B` batch, `L` tokens, `N` norms that are simplified, `H` hidden size.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bplightning.compaction.blending import BlendedActivation, BlendedNorm
from bplightning.compaction.no_norm import NoNorm, norms_of
from bplightning.contracts.strategy import Progress
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.instance_mixin import mix_in, take_out
from bplightning.layout.prunable_layout import PrunableLayout

ACTIVATION_FIELDS = ("hidden_act", "activation_function", "hidden_activation", "activation")
"""What families call the configuration's field that names the activation."""

RATE = 0.1
"""How far what is known of a norm follows what was measured in the last optimizer step."""

TINY = 1e-12
"""A variance below it is none: the feature is a constant."""

UNMEASURED = (0.0, 0.0, 1.0, 1.0)
"""What is known of a feature at first: mean before and after normalizing, covariance of the two, variance before."""


class Simplification:
    """What of the network becomes simpler while it trains, for speed (arXiv 2109.04838).

    Both changes are blended in, evenly from step to step, between the two warm-ups; at the end nothing is left of what
    was there before. The norms are those of the layers: of the embeddings, and after the last layer, they stay.

    Args:
        no_norm: Whether each LayerNorm becomes MobileBERT's NoNorm (arXiv 2004.02984): weight * x + bias, without mean
            and variance.
        relu: Whether GELU becomes ReLU, wherever the model's configuration chooses the activation.
        initial_warmup: Length of training before the blend begins, in multiples of the learning-rate warm-up.
        final_warmup: Length of training after it is complete, in multiples of the learning-rate warm-up.
    """

    def __init__(
        self, no_norm: bool = False, relu: bool = False, initial_warmup: float = 1.0, final_warmup: float = 10.0
    ) -> None:
        for name, value in (("initial_warmup", initial_warmup), ("final_warmup", final_warmup)):
            if not value >= 0:
                raise UserError(
                    f"simplification's {name} is {value:g}; it must be 0 or more, in multiples of the learning-rate "
                    "warm-up."
                )
        self.no_norm = no_norm
        self.relu = relu
        self.initial_warmup = initial_warmup
        self.final_warmup = final_warmup

    def settings(self) -> dict[str, Any] | None:
        """What the report says of it; `None` where nothing becomes simpler."""
        return dict(vars(self)) if self.no_norm or self.relu else None


class Simplifier(nn.Module):
    """Makes a model simpler, step by step.

    NoNorm starts from what comes closest to LayerNorm's output without measuring a token: for each feature the line of
    least squares through what goes in and what comes out, over all tokens. It is followed while both are computed,
    stands still once only NoNorm is, and is folded into weight and bias at the end. LayerNorm's own weight and bias
    would start far off, and so would one deviation common to all features: what is wrong in one layer grows in the
    next.

    How far it is, and these lines, are in the ``state_dict``; the names and shapes of the model's are unchanged.

    Args:
        settings: What becomes simpler, and when.
        layout: The model's. Its norms and activations are replaced now, as yet by what computes the same.

    Attributes:
        amount: How much of the outputs is the simple one's, from 0, nothing, to 1, all.
        statistics: What is known of each norm's features, as in `UNMEASURED`, ``(N, 4, H)``.
        measured: Optimizer steps in which each was measured, ``(N,)``.

    Raises:
        UserError: The model has no LayerNorm, or no GELU that its configuration names.
    """

    statistics: Tensor
    measured: Tensor

    def __init__(self, settings: Simplification, layout: PrunableLayout) -> None:
        super().__init__()
        self.settings = settings
        self.amount = 0.0
        self._model: list[Any] = [layout.model]  # in a list, which hides it from `state_dict`
        self._norms = norms_of(layout) if settings.no_norm else []
        self._relu = _require_gelu(layout) if settings.relu else None
        self._sums: Tensor | None = None  # over a step's batches: the statistics, and how often, (N, 5, H)
        features = self._norms[0].normalized_shape[0] if self._norms else 0
        self.register_buffer("statistics", torch.tensor(UNMEASURED)[:, None].repeat(len(self._norms), 1, features))
        self.register_buffer("measured", torch.zeros(len(self._norms)))
        for index, norm in enumerate(self._norms):
            mix_in(norm, BlendedNorm)
            norm.__dict__["simplifier"] = self, index  # not as an attribute, which would register it as a sub-module
        if self._relu is not None:
            for name in self._relu.names:
                module = layout.model.get_submodule(name)
                layout.model.set_submodule(name, BlendedActivation(module, self))

    def advance(self, progress: Progress) -> None:
        """Set how much is simple in the optimizer step that comes next, and take up what was measured in the last.

        Args:
            progress: Where training stands.
        """
        self._take_statistics()
        start, end = self._window(progress)
        self.amount = min(max((progress.step - start) / (end - start), 0.0), 1.0)

    def target_reached(self, progress: Progress) -> bool:
        """Whether nothing is left of what was there before."""
        return progress.step >= self._window(progress)[1]

    def harden(self) -> bool:
        """Leave nothing but NoNorm and ReLU, and say so in the configuration, if nothing else is computed any more.

        Returns:
            Whether that was done; a blend of both is left as it is, for it is no ordinary model.
        """
        if self.amount < 1:
            return False
        (model,) = self._model
        with torch.no_grad():
            for index, norm in enumerate(self._norms):
                weight, bias = self.folded(norm, index)
                norm.weight.copy_(weight)
                if bias is not None:
                    norm.bias.copy_(bias)
                take_out(norm, BlendedNorm)
                mix_in(norm, NoNorm)
                del norm.__dict__["simplifier"]
        if self._relu is not None:
            for name in self._relu.names:
                model.set_submodule(name, nn.ReLU())
            for module in model.modules():
                if hasattr(getattr(module, "config", None), self._relu.field):
                    setattr(module.config, self._relu.field, "relu")
        return True

    def folded(self, norm: nn.LayerNorm, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias ``(H,)`` with which NoNorm comes closest to LayerNorm.

        Args:
            norm: The norm.
            index: Its number.
        """
        before, after, covariance, variance = self.statistics[index].float()
        if norm.bias is None:  # a line through zero
            covariance, variance = covariance + before * after, variance + before.square()
        slope = covariance / variance.clamp(min=TINY)
        weight = norm.weight * slope.to(norm.weight.dtype)
        if norm.bias is None:
            return weight, None
        return weight, norm.bias + norm.weight * (after - slope * before).to(norm.weight.dtype)

    @torch.no_grad()
    def measure(self, index: int, input_BLH: Tensor, mean_BL1: Tensor, inverse_BL1: Tensor) -> None:
        """Take note of the input of norm `index`; the host does not wait for it."""
        before = input_BLH.flatten(0, -2).float()
        after = (before - mean_BL1.flatten()[:, None]) * inverse_BL1.flatten()[:, None]
        means = before.mean(0), after.mean(0)
        before = before - means[0]
        products = (before * (after - means[1])).mean(0), before.square().mean(0)
        if self._sums is None:
            self._sums = before.new_zeros(len(self._norms), 5, before.shape[-1])
        self._sums[index] += torch.stack([*means, *products, torch.ones_like(means[0])])

    def get_extra_state(self) -> Tensor:
        """The amount; a number that the host knows, and no buffer, for each forward pass asks for it."""
        return torch.tensor(self.amount, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.amount = float(state)

    def _window(self, progress: Progress) -> tuple[int, int]:
        window = PruningWindow(self.settings.initial_warmup, self.settings.final_warmup)
        return window.steps(progress, section="simplification")

    @torch.no_grad()
    def _take_statistics(self) -> None:
        sums, self._sums = self._sums, None
        if sums is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)  # every rank computes with the same
        times = sums[:, 4:]  # none for a layer that was dropped
        self.measured += times[:, 0, 0] > 0
        rate = torch.where(times > 0, (1 / self.measured).clamp(RATE, 1)[:, None, None], 0)
        self.statistics.lerp_((sums[:, :4] / times.clamp(min=1)).to(self.statistics), rate.to(self.statistics))


class _Gelu(NamedTuple):
    """The configuration's field that chooses GELU, and the names of the modules that it so chooses."""

    field: str
    names: list[str]


def _require_gelu(layout: PrunableLayout) -> _Gelu | None:
    """The activations to simplify; `None` where all of them are ReLU.

    Raises:
        UserError: There are others than GELU, or the configuration does not choose them.
    """
    model: Any = layout.model
    there = {group.activation: operator.attrgetter(group.activation)(model) for group in layout.feed_forward}
    others = {name: activation for name, activation in there.items() if type(activation) is not nn.ReLU}
    if not others:
        return None
    for field in ACTIVATION_FIELDS:
        chosen = getattr(model.config, field, None)
        if isinstance(chosen, str) and "gelu" in chosen:
            config = copy.deepcopy(model.config)
            setattr(config, field, "relu")
            with torch.device("meta"):  # a head's activation may be chosen by the field too, as BERT's for masked words
                simple = type(model)(config)
            names = [name for name, module in simple.named_modules() if type(module) is nn.ReLU]
            if others.keys() <= set(names):
                return _Gelu(field, [name for name in names if type(model.get_submodule(name)) is not nn.ReLU])
    kinds = sorted({getattr(activation, "__name__", type(activation).__name__) for activation in others.values()})
    raise UserError(
        f"simplification.relu is true, but this {model.config.model_type!r} model computes {', '.join(kinds)}: no GELU "
        f"that one of {', '.join(ACTIVATION_FIELDS)} in its configuration chooses. Leave it out, or take a model such "
        "as BERT or BART."
    )
