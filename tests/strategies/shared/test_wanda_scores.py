"""Wanda's pure functions, against their definitions."""

from __future__ import annotations

import pytest
import torch

from bplightning.errors import UserError
from bplightning.strategies.shared.wanda_scores import keep_n_of_m, keep_per_row, wanda_scores


def test_scores_are_magnitude_times_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(3, 4, generator=generator)
    inputs_LI = torch.randn(9, 4, generator=generator)
    scores_OI = wanda_scores(weight_OI, inputs_LI.norm(dim=0))
    expected = abs(float(weight_OI[1, 2])) * float(inputs_LI[:, 2].square().sum()) ** 0.5
    assert float(scores_OI[1, 2]) == pytest.approx(expected)


def test_each_row_keeps_the_same_share_of_its_own_best() -> None:
    scores_OI = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)[:, None]
    kept_OI = keep_per_row(scores_OI, 0.5)
    assert kept_OI.sum(1).tolist() == [4] * 5
    assert (scores_OI.masked_fill(~kept_OI, 9).amin(1) > scores_OI.masked_fill(kept_OI, 0).amax(1)).all()


def test_each_group_of_neighbours_keeps_its_best() -> None:
    scores_OI = torch.tensor([[0.1, 0.4, 0.3, 0.2, 9.0, 8.0, 7.0, 6.0]])
    assert keep_n_of_m(scores_OI, 1, 4).int().tolist() == [[0, 1, 0, 0, 1, 0, 0, 0]]


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match=r"density is 1\.5"):
        keep_per_row(torch.ones(1, 4), 1.5)
    with pytest.raises(UserError, match="3:2 does not suit rows of 4 weights"):
        keep_n_of_m(torch.ones(1, 4), 3, 2)
    with pytest.raises(UserError, match="2:3 does not suit rows of 4 weights"):
        keep_n_of_m(torch.ones(1, 4), 2, 3)
