"""The seed of a run, from its settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jsonargparse import Namespace
from lightning.pytorch.utilities.seed import isolate_rng

from bplightning.cli.trainers import seeded
from bplightning.cli.training import PruningCLI
from bplightning.errors import UserError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One process, and a seed that an earlier run has left in the environment."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    with isolate_rng():
        yield


def test_a_seed_is_drawn() -> None:
    settings = [Namespace(seed_everything=True) for _ in range(3)]
    seeds = {seeded(each) for each in settings}
    assert len(seeds) == 3
    assert {each.seed_everything for each in settings} == seeds  # what config.yaml then holds repeats the run


def test_a_given_seed_is_taken_and_false_is_none() -> None:
    assert seeded(Namespace(seed_everything=7)) == 7
    assert seeded(Namespace(seed_everything=False)) is None


def test_fit_draws_one() -> None:
    made = PruningCLI(["fit", "--strategy", "dense", "--seed_everything", "true", "--trainer.accelerator", "cpu"])
    assert made.seed not in (0, 11, None)
    assert made.settings.seed_everything == made.seed


def test_ranks_take_the_seed_that_the_first_has_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert seeded(Namespace(seed_everything=True)) == 11
    monkeypatch.delenv("PL_GLOBAL_SEED")
    with pytest.raises(UserError, match="each of the 2 processes of this run would draw another seed: give a number"):
        seeded(Namespace(seed_everything=True))
