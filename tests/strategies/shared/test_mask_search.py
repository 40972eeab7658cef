"""The search, the rearrangement and the least squares of retraining-free pruning, against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from bplightning.strategies.shared.mask_search import best_counts, least_squares_gates, rearranged


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
def test_no_other_pair_of_counts_loses_less(seed: int, budget: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads_N, units_N = (torch.rand(count, generator=generator).sort(descending=True).values for count in (5, 12))

    def share(heads: int, units: int) -> float:
        return (3 * heads + units + 1) / (3 * 5 + 12 + 1)

    def lost(heads: int, units: int) -> float:
        return float(heads_N[heads:].sum() + units_N[units:].sum())

    found = best_counts(
        head_losses_N=heads_N,
        unit_losses_N=units_N,
        share=lambda heads: lambda units: share(heads, units),
        budget=budget,
    )
    assert found is not None
    assert share(*found) <= budget
    within = [pair for pair in itertools.product(range(6), range(13)) if share(*pair) <= budget]
    assert lost(*found) == pytest.approx(min(lost(*pair) for pair in within), abs=1e-6)


def test_a_budget_that_nothing_meets_is_said() -> None:
    losses_N = torch.ones(2)
    assert (
        best_counts(head_losses_N=losses_N, unit_losses_N=losses_N, share=lambda _: lambda _: 0.3, budget=0.2) is None
    )


def missed(gradients_EN: torch.Tensor, kept_N: torch.Tensor) -> float:
    return float(gradients_EN[:, ~kept_N].sum(1).square().sum())


def test_two_that_cancel_go_together() -> None:
    """The second is missed more than the third alone, and hardly where the first is gone."""
    gradients_EN = torch.tensor([[3.0, -2.9, 1.0, 5.0], [-3.0, 3.1, 1.0, 5.0]])
    kept_N = torch.tensor([False, True, False, True])
    assert rearranged(kept_N=kept_N, gradients_EN=gradients_EN).tolist() == [False, False, True, True]


@pytest.mark.parametrize("kept", [0, 1, 9, 19, 20])
def test_rearranged_is_as_many_and_never_missed_more(kept: int) -> None:
    gradients_EN = torch.randn(30, 20, generator=torch.Generator().manual_seed(kept))
    best = gradients_EN.square().sum(0).argsort(descending=True)[:kept]
    kept_N = torch.zeros(20, dtype=torch.bool).index_fill(0, best, True)
    found_N = rearranged(kept_N=kept_N, gradients_EN=gradients_EN)
    assert int(found_N.sum()) == kept
    assert missed(gradients_EN, found_N) <= missed(gradients_EN, kept_N)
    if kept == 9:
        assert missed(gradients_EN, found_N) < 0.5 * missed(gradients_EN, kept_N)


@pytest.mark.parametrize("columns", [1, 3])
def test_gates_are_the_least_squares_ones(columns: int) -> None:
    """Of units, and of heads of three columns."""
    generator = torch.Generator().manual_seed(columns)
    given_LC = torch.randn(40, 6 * columns, generator=generator, dtype=torch.float64)
    target_LO = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    weight_OC = torch.randn(7, 6 * columns, generator=generator, dtype=torch.float64)
    gates_N = least_squares_gates(
        squares_CC=given_LC.T @ given_LC,
        targets_OC=target_LO.T @ given_LC,
        weight_OC=weight_OC,
        columns=columns,
        damping=1e-12,
    )
    outputs = torch.einsum("lnc,onc->nlo", given_LC.view(40, 6, columns), weight_OC.view(7, 6, columns))
    expected = torch.linalg.lstsq(outputs.flatten(1).T, target_LO.flatten()).solution
    torch.testing.assert_close(gates_N, expected)


def test_much_damping_holds_gates_to_one_and_nothing_seen_leaves_them() -> None:
    inputs_LC = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    seen = {"squares_CC": inputs_LC.T @ inputs_LC, "targets_OC": 5 * inputs_LC.T @ inputs_LC}
    held_N = least_squares_gates(**seen, weight_OC=torch.eye(4), columns=1, damping=1e9)
    torch.testing.assert_close(held_N, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    nothing = torch.zeros(4, 4)
    unseen_N = least_squares_gates(
        squares_CC=nothing, targets_OC=nothing, weight_OC=torch.eye(4), columns=1, damping=0.01
    )
    assert unseen_N.tolist() == [1.0] * 4
