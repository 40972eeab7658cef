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
"""Names of the configuration's field for the activation, which differ between families."""

RATE = 0.1
"""Weight of the last optimizer step in the moving average of a norm's statistics."""

TINY = 1e-12
"""A variance below this counts as zero: the feature is constant."""

UNMEASURED = (0.0, 0.0, 1.0, 1.0)
"""Initial statistics of a feature: mean before and after normalizing, covariance of both, variance before."""


class Simplification:
    """Settings of simplification, which replaces norms and activations during training, for speed (arXiv 2109.04838).

    Both changes are blended in linearly between the two warm-ups; at the end only the simpler modules are left. The
    norms of the layers are replaced; those of the embeddings and after the last layer stay.

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
        """The settings for the report; `None` where nothing is simplified."""
        return dict(vars(self)) if self.no_norm or self.relu else None


class Simplifier(nn.Module):
    """Simplifies a model step by step.

    NoNorm starts as the best approximation of LayerNorm that does not normalize single tokens: for each feature, the
    line of least squares from input to output, over all tokens. The line is updated while both are computed, is fixed
    once only NoNorm is, and is folded into weight and bias at the end. LayerNorm's own weight and bias would be a bad
    start, and so would one deviation for all features, since an error of one layer grows in the next.

    The blend and these lines are in the ``state_dict``; names and shapes of the model's own are unchanged.

    Args:
        settings: What is simplified, and when.
        layout: Layout of the model. Its norms and activations are replaced now by blends that compute the same at
            first.

    Attributes:
        amount: Share of the simpler modules in the outputs, from 0 to 1.
        statistics: Statistics of each norm's features, as in `UNMEASURED`, ``(N, 4, H)``.
        measured: Number of optimizer steps in which each norm was measured, ``(N,)``.

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
        self._sums: Tensor | None = None  # over a step's batches: sums of the statistics and their count, (N, 5, H)
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
        """Set the blend of the next optimizer step, and update the statistics from the last.

        Args:
            progress: Where training stands.
        """
        self._take_statistics()
        start, end = self._window(progress)
        self.amount = min(max((progress.step - start) / (end - start), 0.0), 1.0)

    def target_reached(self, progress: Progress) -> bool:
        """Whether only the simpler modules are left."""
        return progress.step >= self._window(progress)[1]

    def harden(self) -> bool:
        """Replace the blends by NoNorm and ReLU, also in the configuration, once the blend is complete.

        Returns:
            Whether that was done; an incomplete blend is left unchanged, since it is no ordinary model.
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
        """Add the input of norm `index` to the statistics; the host does not wait for the device."""
        before = input_BLH.flatten(0, -2).float()
        after = (before - mean_BL1.flatten()[:, None]) * inverse_BL1.flatten()[:, None]
        means = before.mean(0), after.mean(0)
        before = before - means[0]
        products = (before * (after - means[1])).mean(0), before.square().mean(0)
        if self._sums is None:
            self._sums = before.new_zeros(len(self._norms), 5, before.shape[-1])
        self._sums[index] += torch.stack([*means, *products, torch.ones_like(means[0])])

    def get_extra_state(self) -> Tensor:
        """The amount, which is a number on the host and not a buffer, since each forward pass reads it."""
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
            torch.distributed.all_reduce(sums)  # all ranks use the same sums
        times = sums[:, 4:]  # 0 for a layer that was dropped
        self.measured += times[:, 0, 0] > 0
        rate = torch.where(times > 0, (1 / self.measured).clamp(RATE, 1)[:, None, None], 0)
        self.statistics.lerp_((sums[:, :4] / times.clamp(min=1)).to(self.statistics), rate.to(self.statistics))


class _Gelu(NamedTuple):
    """The configuration's field that selects GELU, and the names of the modules that it sets."""

    field: str
    names: list[str]


def _require_gelu(layout: PrunableLayout) -> _Gelu | None:
    """The activations to simplify; `None` where all of them are ReLU.

    Raises:
        UserError: There are other activations than GELU, or the configuration does not select them.
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
            with torch.device("meta"):  # the field may also set a head's activation, as BERT's for masked words
                simple = type(model)(config)
            names = [name for name, module in simple.named_modules() if type(module) is nn.ReLU]
            if others.keys() <= set(names):
                return _Gelu(field, [name for name in names if type(model.get_submodule(name)) is not nn.ReLU])
    kinds = sorted({getattr(activation, "__name__", type(activation).__name__) for activation in others.values()})
    raise UserError(
        f"simplification.relu is true, but this {model.config.model_type!r} model computes {', '.join(kinds)}, and not "
        f"GELU selected by one of {', '.join(ACTIVATION_FIELDS)} in its configuration: leave it out, or use a model "
        "such as BERT or BART."
    )
