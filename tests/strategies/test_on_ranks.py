"""Two ranks with half the batch each train as one process with the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from programs import Program

STRATEGIES = (
    "hybrid",
    "hybrid-taught",
    "hybrid-to-density",
    "soft-movement",
    "movement",
    "magnitude",
    "l0",
    "cofi",
    "taylor",
    "ziplm",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two of them ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "support" / "train_on_ranks.py"
    taylor = Path(__file__).parents[2] / "examples" / "custom_strategy"
    variables = {"PL_GLOBAL_SEED": "0", "PYTHONPATH": str(taylor)}
    for ranks in (1, 2):
        training = Program(script, str(ranks), str(folder), cwd=folder, variables=variables)
        assert training.end() == 0, training.said
    return folder


@pytest.mark.parametrize("name", STRATEGIES)
def test_scores_masks_and_weights_are_those_of_one_process(folder: Path, name: str) -> None:
    one, two = (torch.load(folder / f"{name}-{ranks}.pt", weights_only=True) for ranks in (1, 2))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if not isinstance(value, torch.Tensor):
            assert two[key] == value, key
        elif value.is_floating_point():
            torch.testing.assert_close(two[key], value, rtol=1e-7, atol=1e-9)
        else:
            assert torch.equal(two[key], value), key
    kept = [value for key, value in one.items() if key.endswith("kept")]
    assert 0 < sum(int(value.sum()) for value in kept) < sum(value.numel() for value in kept)  # it did prune
