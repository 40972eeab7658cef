"""The seed and the trainer of a run, from its settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch.utilities.seed import isolate_rng
from own_module import InOrder, OwnModule, trainer

from bplightning.cli.trainers import lightning_refusals_said, make_trainer, seeded
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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"overfit_batches": 1.5}, r"the trainer cannot be set up so \(You have passed invalid value 1.5 for overfit"),
        ({"strategy": "nonsense"}, r"the trainer cannot be set up so \(You selected an invalid strategy name"),
        ({"accumulate_grad_batches": 0}, r"--trainer.accumulate_grad_batches is 0; it must be 1 or more"),
        ({"check_val_every_n_epoch": 0}, r"--trainer.check_val_every_n_epoch is 0; it must be 1 or more"),
    ],
)
def test_what_the_trainer_refuses_is_one_line(option: dict[str, Any], message: str) -> None:
    settings = {"accelerator": "cpu", "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "logger": False}
    with pytest.raises(UserError, match=message):
        make_trainer(Namespace(**(settings | option)), [])


def test_what_lightning_refuses_in_training_is_one_line_and_what_others_raise_is_theirs(tmp_path: Path) -> None:
    class Broken(OwnModule):
        def training_step(self, *args: Any) -> Any:
            raise ValueError("mine")

    with (
        pytest.raises(
            UserError, match=r"Lightning refuses this run .*val_check_interval.* change the --trainer option"
        ),
        lightning_refusals_said(),
    ):
        trainer(tmp_path, val_check_interval=1000).fit(OwnModule(tmp_path), datamodule=InOrder(tmp_path))
    with pytest.raises(ValueError, match=r"^mine$"), lightning_refusals_said():
        trainer(tmp_path).fit(Broken(tmp_path), datamodule=InOrder(tmp_path))
