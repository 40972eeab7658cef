"""Second-order removal against direct solutions, in double precision."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bplightning.strategies.shared import second_order
from bplightning.strategies.shared.second_order import (
    InputMoments,
    eliminate,
    refit,
    refit_bias,
    removals,
    structure_costs,
)

OUT, STRUCTURES, TOKENS = 7, 6, 90


def layer(columns: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight ``(O, I)`` and inputs ``(N, I)`` that depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    features = STRUCTURES * columns

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return drawn(OUT, features), drawn(TOKENS, features) @ drawn(features, features) + drawn(features)


def columns_of(structures: list[int], columns: int) -> Tensor:
    return torch.tensor([s * columns + c for s in structures for c in range(columns)], dtype=torch.long)


def least_squares(weight: Tensor, inputs: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """The weight of the columns kept that gives the outputs best, and the squared error of that: by torch's solver."""
    outputs = inputs @ weight.T
    solution = torch.linalg.lstsq(inputs[:, kept], outputs).solution
    return solution.T, float((inputs[:, kept] @ solution - outputs).square().sum())


def others(*gone: int) -> list[int]:
    return [structure for structure in range(STRUCTURES) if structure not in gone]


@pytest.mark.parametrize("columns", [1, 3])
def test_the_cost_of_a_structure_is_the_error_that_the_best_refit_leaves(columns: int) -> None:
    weight, inputs = layer(columns)
    inverse = torch.linalg.inv(inputs.T @ inputs)
    costs = structure_costs(weight_OI=weight, inverse_II=inverse, columns=columns)
    expected = [least_squares(weight, inputs, columns_of(others(s), columns))[1] for s in range(STRUCTURES)]
    assert costs.tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("columns", [1, 3])
def test_one_removal_updates_weight_and_inverse_as_a_direct_solution(columns: int) -> None:
    weight, inputs = layer(columns)
    hessian = inputs.T @ inputs
    updated, inverse = weight.clone(), torch.linalg.inv(hessian)
    eliminate(weight_OI=updated, inverse_II=inverse, first=2 * columns, columns=columns)
    kept = columns_of(others(2), columns)
    torch.testing.assert_close(updated[:, kept], least_squares(weight, inputs, kept)[0], rtol=1e-8, atol=1e-10)
    assert (updated[:, columns_of([2], columns)] == 0).all()
    without = torch.linalg.inv(hessian[kept][:, kept])
    torch.testing.assert_close(inverse[kept][:, kept], without, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("shrink_every", [2, 128])
def test_each_removal_is_the_cheapest_of_all_that_were_left(
    monkeypatch: pytest.MonkeyPatch, columns: int, shrink_every: int
) -> None:
    """By trying every structure, with the direct solution."""
    monkeypatch.setattr(second_order, "SHRINK_EVERY", shrink_every)
    weight, inputs = layer(columns, seed=1)
    found = removals(weight_OI=weight, hessian_II=inputs.T @ inputs, columns=columns)
    total = float((inputs @ weight.T).square().sum())
    assert found.errors[0] == 0
    assert found.errors[-1] == pytest.approx(1)
    gone: list[int] = []
    for structure, error in zip(found.order, found.errors[1:], strict=True):
        tried = {s: least_squares(weight, inputs, columns_of(others(*gone, s), columns))[1] for s in others(*gone)}
        assert structure == min(tried, key=lambda s: tried[s])
        assert error == pytest.approx(tried[structure] / total, rel=1e-7)
        gone.append(structure)
    assert all(before <= after for before, after in pairwise(found.errors))


def test_many_removals_are_one_refit() -> None:
    weight, inputs = layer(3)
    hessian = inputs.T @ inputs
    updated, inverse = weight.clone(), torch.linalg.inv(hessian)
    for structure in (4, 0, 3):
        eliminate(weight_OI=updated, inverse_II=inverse, first=3 * structure, columns=3)
    kept = columns_of([1, 2, 5], 3)
    torch.testing.assert_close(
        refit(weight_OI=weight, hessian_II=hessian, kept_K=kept), updated[:, kept], rtol=1e-8, atol=1e-10
    )


def test_a_bias_takes_the_mean_and_a_constant_costs_nothing() -> None:
    """Against least squares with one more column, of ones; the constant is folded into the bias exactly."""
    weight, inputs = layer(1)
    inputs[:, 3] = 0.7
    moments = InputMoments(STRUCTURES, inputs.device)
    for part in inputs.split(40):
        moments.update(part)
    hessian = moments.hessian(centered=True, damping=1e-13)
    assert removals(weight_OI=weight, hessian_II=hessian, columns=1).order[0] == 3
    bias, kept = torch.arange(OUT, dtype=torch.float64), torch.tensor([0, 2, 4, 5])
    after = torch.zeros_like(weight)
    after[:, kept] = refit(weight_OI=weight, hessian_II=hessian, kept_K=kept)
    new = refit_bias(bias_O=bias, before_OI=weight, after_OI=after, mean_I=moments.mean())
    ones = torch.ones(TOKENS, 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([inputs[:, kept], ones], 1), inputs @ weight.T + bias).solution
    torch.testing.assert_close(after[:, kept], solution[:-1].T, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(new, solution[-1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("centered", [True, False])
def test_columns_that_are_gone_have_no_part_in_the_damping(centered: bool) -> None:
    _, inputs = layer(1)
    whole, left = InputMoments(STRUCTURES, inputs.device), InputMoments(2, inputs.device)
    whole.update(inputs)
    left.update(inputs[:, [1, 4]])
    found = whole.hessian(centered=centered, damping=0.5, columns_K=torch.tensor([1, 4]))
    torch.testing.assert_close(found, left.hessian(centered=centered, damping=0.5))
