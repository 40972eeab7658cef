"""Masks: binary grids that are broadcast over weights, with exact gradients. A strategy decides what a grid keeps.

Real-valued gates use the same masks; a strategy also defines the gate as a function of the scores.

Legend: `O` out features, `I` in features, `R`, `C` grid rows and columns, ``r = O / R`` and ``c = I / C`` the tile.

One class covers element, block, row, column, unit and head: the shape of the grid decides which. A mask leaves the
module tree and the parameter names of the model as they are: `Masked` is mixed into the class of the module that owns
the weight, so that reading the weight gives the masked weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bplightning.layout.groups import Member
from bplightning.layout.instance_mixin import Mixin, mix_in, take_out


@dataclass(frozen=True)
class Cover:
    """A member that a mask covers.

    Attributes:
        member: The slice of a parameter.
        transposed: Whether the grid's rows run along the member's columns, as for the down projection of a unit mask.
        idle: Whether the member is read unmasked, because another member of the mask already blocks it: where the grid
            is 0 it has no effect, and `clear_idle` writes zeros there when the mask is removed.
    """

    member: Member
    transposed: bool = False
    idle: bool = False


class Mask(nn.Module):
    """A grid over one weight, or over several that share it.

    What it keeps is a buffer that a strategy writes (`set_grid`). So it is part of the strategy's ``state_dict``, and
    changes only when the strategy changes it, not with every forward pass.

    Args:
        role: Role of the group it belongs to, by which penalty and density are set.
        covers: The members it covers; if there are several, they share every entry of the grid.
        grid: Rows and columns ``(R, C)`` of the grid.
        total_weights: Number of weights in all covered members together.
        scores: Whether the grid has learned scores; they start at 0.
        pattern: ``(N, M)`` where at most `N` of each `M` neighbours in a row of the grid stay (N:M), else `None`.

    Attributes:
        kept: The current binary grid ``(R, C)``; everything is kept at first.
        scores: ``(R, C)``, or `None`.
        gate: A function whose result multiplies the weights instead of `kept`, for gates that are not binary. It takes
            the scores, and uniform random numbers in [0, 1) or `None`, and returns the gate, each ``(R, C)``.
            Gradients reach the scores through it.
        noise: The random numbers of the current training batch (`draw`), ``(R, C)``; `None` outside of training.

    Example:
        A 2 x 2 grid over a 4 x 4 weight keeps or drops tiles of 2 x 2:

        >>> layer = nn.Linear(4, 4, bias=False)
        >>> mask = Mask("attention", (Cover(Member("")),), (2, 2), 16)
        >>> install_mask(layer, mask)
        >>> mask.set_grid(torch.eye(2, dtype=torch.bool))
        >>> (layer.weight != 0).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """

    kept: Tensor

    def __init__(
        self,
        role: str,
        covers: tuple[Cover, ...],
        grid: tuple[int, int],
        total_weights: int,
        scores: bool = True,
        pattern: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.role = role
        self.covers = covers
        self.total_weights = total_weights
        self.pattern = pattern
        self.scores = nn.Parameter(torch.zeros(grid)) if scores else None
        self.gate: Callable[[Tensor, Tensor | None], Tensor] | None = None
        self.noise: Tensor | None = None
        self.register_buffer("kept", torch.ones(grid, dtype=torch.bool))

    @property
    def weights_per_entry(self) -> int:
        """Number of weights that one entry of the grid keeps or drops."""
        return self.total_weights // self.kept.numel()

    @torch.no_grad()
    def set_grid(self, kept_RC: Tensor) -> None:
        """Keep these tiles from now on.

        Args:
            kept_RC: Binary grid ``(R, C)``; no gradient passes through it (straight-through).
        """
        self.kept.copy_(kept_RC)

    def draw(self, generator: torch.Generator) -> None:
        """Draw random gates, which stay the same until the next draw or `settle`.

        Args:
            generator: Source of the random numbers, on the device of the scores.
        """
        scores = cast(Tensor, self.scores)
        self.noise = torch.rand(scores.shape, generator=generator, dtype=scores.dtype, device=scores.device)

    def settle(self) -> None:
        """Use the gates of evaluation from now on."""
        self.noise = None

    def kept_weights(self) -> Tensor:
        """Number of weights kept in all covered members, a 0-d tensor on the device."""
        return self.kept.float().mean() * self.total_weights

    @torch.no_grad()
    def pooled(self, of: Callable[[Member], Tensor]) -> Tensor:
        """The mean of a value per weight over each entry's tile, taken over all covered members.

        Args:
            of: Returns the values ``(O, I)`` of a member, for example the absolute values of its weights.

        Returns:
            ``(R, C)``, on the device.
        """
        rows, columns = self.kept.shape
        sums = torch.zeros(rows, columns, device=self.kept.device)
        for cover in self.covers:
            values_OI = of(cover.member).float()
            values_OI = values_OI.T if cover.transposed else values_OI
            sums += values_OI.reshape(rows, values_OI.shape[0] // rows, columns, -1).sum((1, 3))
        return sums / self.weights_per_entry

    @torch.no_grad()
    def any_open(self) -> Tensor:
        """Whether any entry is open at present, a 0-d tensor on the device."""
        return self.kept.any() if self.gate is None else (self.gate(cast(Tensor, self.scores), self.noise) > 0).any()

    @torch.no_grad()
    def clear_idle(self, model: nn.Module) -> None:
        """Write zeros into the idle members of `model` wherever nothing is kept."""
        for cover in self.covers:
            if cover.idle:
                weight_OI = cover.member.weight(model)
                weight_OI.copy_(masked_weight(weight_OI, self.kept, None, transposed=cover.transposed))

    def apply_to(self, weight_OI: Tensor, cover: Cover) -> Tensor:
        """The masked weight ``(O, I)`` of one covered member."""
        grid, scores = self.kept, cast(Tensor, self.scores)
        if self.gate is not None:  # the sum over a tile is the exact gradient of its gate, as a product's is
            scores = self.gate(scores, self.noise)
            grid = scores.detach()
        return masked_weight(weight_OI, grid, scores, transposed=cover.transposed)


def masked_weight(weight_OI: Tensor, grid_RC: Tensor, scores_RC: Tensor | None, *, transposed: bool = False) -> Tensor:
    """The weight with every tile multiplied by its entry of the grid.

    The gradient of a weight is gated by the grid; the gradient of a score is the sum over its tile of ``dL/dW' * W``,
    whether the tile is kept or not, so that pruned weights can return (Sanh et al. 2020, arXiv 2005.07683, equation
    2).

    Args:
        weight_OI: The unmasked weight.
        grid_RC: Binary grid, or a gate; `R` divides `O` and `C` divides `I` (the other way round with `transposed`).
        scores_RC: Scores that receive the gradient, or `None`; for a gate, the gate itself.
        transposed: Whether the grid's rows run along the weight's columns.

    Returns:
        The masked weight, shaped and typed as `weight_OI`.
    """
    return cast(Tensor, _MaskedWeight.apply(weight_OI, scores_RC, grid_RC, transposed))


def _widened(grid_RC: Tensor, weight_OI: Tensor, *, transposed: bool) -> Tensor:
    """The grid in the weight's dtype, with one number for each column of the weight: ``(R, I)``, or ``(R, 1)``."""
    keep_RC = (grid_RC.T if transposed else grid_RC).to(weight_OI.dtype)
    columns, in_features = keep_RC.shape[1], weight_OI.shape[1]
    return keep_RC if columns in (1, in_features) else keep_RC.repeat_interleave(in_features // columns, dim=1)


class _MaskedWeight(torch.autograd.Function):
    """`masked_weight` over a 3-D view ``(R, r, I)``: the grid widens along `I` only, so inner rows stay contiguous."""

    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, scores_RC: Tensor | None, grid_RC: Tensor, transposed: bool) -> Tensor:
        # The grid is saved before it is widened: for single weights, a widened one would be another copy of the weight.
        ctx.save_for_backward(weight_OI, grid_RC)
        ctx.transposed = transposed
        ctx.score_dtype = None if scores_RC is None else scores_RC.dtype
        keep_RI = _widened(grid_RC, weight_OI, transposed=transposed)
        return (weight_OI.reshape(len(keep_RI), -1, weight_OI.shape[1]) * keep_RI[:, None]).view(weight_OI.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad_OI,) = grads
        weight_OI, grid_RC = ctx.saved_tensors
        rows, columns = reversed(grid_RC.shape) if ctx.transposed else grid_RC.shape
        keep_RI = _widened(grid_RC, weight_OI, transposed=ctx.transposed)
        in_features = weight_OI.shape[1]
        grad_RrI = grad_OI.reshape(rows, -1, in_features)
        grad_weight = grad_scores = scratch = None
        if ctx.needs_input_grad[1]:
            scratch = grad_RrI * weight_OI.reshape(rows, -1, in_features)
            # Where a tile is one row, a sum would only copy the weight.
            sums_RI = scratch[:, 0] if scratch.shape[1] == 1 else scratch.sum(1, dtype=ctx.score_dtype)
            grad_scores = sums_RI.view(rows, columns, -1).sum(2, dtype=ctx.score_dtype)
            if ctx.transposed:
                grad_scores = grad_scores.T
        if ctx.needs_input_grad[0]:  # reuses the memory: a second copy of each weight costs more than its sums
            grad_weight = torch.mul(grad_RrI, keep_RI[:, None], out=scratch).view(weight_OI.shape)
        return grad_weight, grad_scores, None, None


# -- carrying masks on a model -----------------------------------------------------------------------------------------


UNDER_MASK = "_under_mask"
"""End of the name under which a `state_dict` holds a weight without its mask, from which training resumes."""


class Masked(Mixin):
    """Mixed into the class of a module whose weights are read through masks; writing is as before.

    A `state_dict` holds the masked weight under the weight's own name, so whoever reads it, with or without the masks,
    has the pruned model. The weight itself has a second name, by which a module with masks takes it back.
    """

    def __getattr__(self, name: str) -> Any:
        """A parameter is only found here, since `nn.Module` keeps it in a dictionary, so it can be masked here."""
        covers = self.__dict__.get("_carried_masks", {}).get(name)
        if covers is None:
            return super().__getattr__(name)  # type: ignore[misc]
        frozen = self.__dict__.get("_frozen_weights")
        if frozen is not None and not torch.is_grad_enabled():
            return frozen[name]
        return _read_through(self.__dict__["_parameters"][name], covers)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name, covers in self.__dict__["_carried_masks"].items():
            weight = destination[prefix + name]
            destination[prefix + name] = _as_evaluated(weight.detach(), covers)
            destination[prefix + name + UNDER_MASK] = weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        for name in self.__dict__["_carried_masks"]:
            if (weight := state_dict.pop(prefix + name + UNDER_MASK, None)) is not None:
                state_dict[prefix + name] = weight
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)  # type: ignore[misc]


@torch.no_grad()
def _as_evaluated(weight: Tensor, covers: Sequence[tuple[Cover, Mask]]) -> Tensor:
    """A whole parameter with its masks applied, with the gates of evaluation."""
    drawn = [(mask, mask.noise) for _, mask in covers]
    for mask, _ in drawn:
        mask.settle()
    try:
        return _read_through(weight, covers)
    finally:
        for mask, noise in drawn:
            mask.noise = noise


def _read_through(weight: Tensor, covers: Sequence[tuple[Cover, Mask]]) -> Tensor:
    """A whole parameter with the masks of its members applied."""
    cover, mask = covers[0]
    if len(covers) == 1 and cover.member.view(weight).shape == weight.shape and not cover.member.transposed:
        return mask.apply_to(weight, cover)
    masked = weight.clone()  # members are slices of a fused or stacked parameter: each is written over its part
    for cover, mask in covers:
        cover.member.view(masked).copy_(mask.apply_to(cover.member.view(weight), cover))
    return masked


def install_mask(model: nn.Module, mask: Mask) -> None:
    """Make `model` read every weight that `mask` covers through the mask.

    Raises:
        ValueError: A covered member carries a mask already.
    """
    for cover in mask.covers:
        if cover.idle:
            continue
        module = model.get_submodule(cover.member.module)
        carried: dict[str, list[tuple[Cover, Mask]]] = module.__dict__.setdefault("_carried_masks", {})
        masks = carried.setdefault(cover.member.parameter, [])
        if any(other.member == cover.member for other, _ in masks):
            raise ValueError(f"{cover.member.name} already has a mask; harden the model before another is installed.")
        # A plain list, so that scores belong only to the strategy's state_dict.
        masks.append((cover, mask))
        mix_in(module, Masked)


def has_masks(model: nn.Module) -> bool:
    """Whether any weight of `model` is read through a mask."""
    return any("_carried_masks" in module.__dict__ for module in model.modules())


@torch.no_grad()
def remove_masks(model: nn.Module) -> None:
    """Write every mask of `model` into its weight, as zeros or as the gates of evaluation, and remove the masks."""
    unfreeze_masks(model)
    _settle(model)
    for module in _carriers(model):
        for parameter in module.__dict__["_carried_masks"]:
            module._parameters[parameter].copy_(getattr(module, parameter))  # type: ignore[union-attr]
        take_out(module, Masked)
        del module.__dict__["_carried_masks"]


@torch.no_grad()
def freeze_masks(model: nn.Module) -> None:
    """Compute masked weights once instead of per forward pass, for evaluation; with gradients they are not used."""
    unfreeze_masks(model)
    _settle(model)
    for module in _carriers(model):
        carried = module.__dict__["_carried_masks"]
        module.__dict__["_frozen_weights"] = {parameter: getattr(module, parameter) for parameter in carried}


def unfreeze_masks(model: nn.Module) -> None:
    """Compute masked weights per forward pass again."""
    for module in model.modules():
        module.__dict__.pop("_frozen_weights", None)


def _settle(model: nn.Module) -> None:
    for module in _carriers(model):
        for covers in module.__dict__["_carried_masks"].values():
            for _, mask in covers:
                mask.settle()


def _carriers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "_carried_masks" in module.__dict__]
