"""A run that is resumed from any checkpoint ends bit for bit as the run that was never interrupted."""

from __future__ import annotations

import csv
import random
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_task import TinyTask
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler

from bplightning.contracts.window import PruningWindow
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule
from bplightning.training.resuming import Place, RepeatableLoader, reseed

pytestmark = pytest.mark.slow


class SaveEverywhere(Checkpoint):
    """A checkpoint in every hook that a callback may choose, named by hook, batches of the epoch and epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: Trainer, hook: str) -> None:
        if trainer.state.fn == "fit":
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.processed
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batches}-{hook}.ckpt", weights_only=False)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._save(trainer, "in-validation")

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self._save(trainer, "epoch")


class Watch(Callback):
    """Which batches were trained on, and what validations found."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int]] = []
        self.validations: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.batches.append((trainer.current_epoch, index, int(batch["input_ids"].sum())))

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.validations.append((trainer.global_step, float(trainer.callback_metrics["val_accuracy"])))


class Ends(Callback):
    """Ends training with an exception."""

    def on_train_end(self, *args: Any) -> None:
        raise ZeroDivisionError


def train(folder: Path, *callbacks: Callback, seed: int = 1, resume: Path | None = None, **options: Any) -> Any:
    """Train for two epochs of 12 batches; the end state and the rows that were logged."""
    torch.manual_seed(seed)
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    module = PruningModule(
        task, Hybrid(window=PruningWindow(final_warmup=2), granularity={"attention": "4x4"}), learning_rate=1e-3
    )
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": CSVLogger(folder),
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    run = Trainer(callbacks=list(callbacks), **(settings | options))
    run.fit(module, datamodule=task, ckpt_path=resume)
    assert "train_dataloader" not in vars(task)  # it has its own loader back
    return module.state_dict(), logged(Path(str(run.log_dir)))


def logged(folder: Path) -> set[tuple[str, str, str]]:
    """Step, name and value of all that was logged."""
    file = folder / "metrics.csv"
    rows = csv.DictReader(file.read_text().splitlines()) if file.exists() else []
    return {(row["step"], name, value) for row in rows for name, value in row.items() if value and name != "epoch"}


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({}, ["0-5-batch", "0-12-batch", "0-12-in-validation", "0-12-validation", "1-12-epoch", "1-1-batch"]),
        ({"max_steps": 20}, ["0-12-batch", "0-12-validation", "0-12-epoch", "1-3-batch"]),
        ({"val_check_interval": 0.5}, ["0-6-batch", "0-6-in-validation", "0-6-validation", "1-6-validation"]),
        ({"accumulate_grad_batches": 5}, ["0-3-batch", "0-5-batch", "0-12-validation", "1-12-epoch", "1-9-batch"]),
        ({"accumulate_grad_batches": 4, "val_check_interval": 0.5}, ["0-6-validation", "0-6-in-validation"]),
        ({"limit_train_batches": 7, "check_val_every_n_epoch": 2}, ["0-7-batch", "1-7-epoch", "1-7-validation"]),
    ],
    ids=lambda value: "-".join(value) or "plain" if isinstance(value, dict) else "",
)
def test_resumed_is_uninterrupted(tmp_path: Path, options: dict[str, Any], points: list[str]) -> None:
    whole = Watch()
    expected, rows = train(tmp_path, whole, SaveEverywhere(tmp_path), **options)
    for point in points:
        rest = Watch()
        state, rows_of_rest = train(tmp_path, rest, seed=2, resume=tmp_path / f"{point}.ckpt", **options)
        assert all(torch.equal(state[name], value) for name, value in expected.items()), point
        assert rest.batches == whole.batches[len(whole.batches) - len(rest.batches) :], point
        assert rest.validations == whole.validations[len(whole.validations) - len(rest.validations) :], point
        assert rows_of_rest <= rows, point


def test_dropout_is_on_in_these_tests(tmp_path: Path) -> None:
    assert TinyTask(tmp_path).build_model().config.hidden_dropout_prob == 0.1


def test_a_validation_that_was_not_finished_is_done_again(tmp_path: Path) -> None:
    whole = Watch()
    train(tmp_path, whole, SaveEverywhere(tmp_path))
    for point, validations in (("batch", 2), ("in-validation", 2), ("validation", 1)):
        rest = Watch()
        train(tmp_path, rest, resume=tmp_path / f"0-12-{point}.ckpt")
        assert rest.validations == whole.validations[-validations:], point


def test_the_whole_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    train(tmp_path, SaveEverywhere(tmp_path), max_steps=2)
    checkpoint = torch.load(tmp_path / "0-2-batch.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["callbacks"]["Resuming"] == {"seed": 1, "validated": False}


def test_what_is_drawn_in_between_changes_nothing(tmp_path: Path) -> None:
    class Draws(Callback):
        def on_validation_end(self, *args: Any) -> None:
            torch.rand(3), np.random.rand(3), random.random()

    states = [train(tmp_path, *callbacks, val_check_interval=0.5)[0] for callbacks in ([], [Draws()])]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    watches = Watch(), Watch()
    for seed, watch in enumerate(watches):
        train(tmp_path, watch, seed=seed, max_steps=3)
    assert watches[0].batches != watches[1].batches


# -- any loader ----------------------------------------------------------------------------------------------------


class Noisy(Dataset[Any]):
    """Numbers with noise of all three generators."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return index + random.random(), index + np.random.rand(), index + torch.rand(()).item()


class Stream(IterableDataset[Any]):
    """Numbers without a length."""

    def __iter__(self) -> Any:
        return (index + torch.rand(()).item() for index in range(10))


def with_own_generator(**options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(Noisy(), generator=generator, **({"batch_size": 2, "shuffle": True} | options))


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=1),
    "sampler": lambda: DataLoader(
        Noisy(), batch_size=2, sampler=DistributedSampler(Noisy(), num_replicas=1, rank=0, shuffle=True)
    ),
    "generator": with_own_generator,
    "generator-workers": lambda: with_own_generator(num_workers=1, persistent_workers=True),
    "sampler-generator": lambda: DataLoader(
        Noisy(), batch_size=2, sampler=RandomSampler(Noisy(), generator=torch.Generator().manual_seed(3))
    ),
    "batch-sampler-generator": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy(), generator=torch.Generator()), 2, drop_last=False)
    ),
    "persistent": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=1, persistent_workers=True),
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "list": lambda: [1, 2, 3, 4, 5],
    "two": lambda: {"a": DataLoader(Noisy(), batch_size=2, shuffle=True), "b": DataLoader(Noisy(), shuffle=True)},
}


def batches(kind: str, *places: Place) -> list[str]:
    """Batches from each of the places to its epoch's end, all of one loader."""
    rest = iter(places)
    loader = RepeatableLoader(LOADERS[kind](), 7, lambda: next(rest))
    return [str(batch) for _ in places for batch, _, _ in loader]


def whole_numbers(epoch: list[str]) -> list[list[str]]:
    """Batches without their noise."""
    return [re.findall(r"(\d+)\.\d+", batch) for batch in epoch]


@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_goes_on_where_it_was(kind: str) -> None:
    epoch, following = (batches(kind, Place(number)) for number in (3, 4))
    assert batches(kind, Place(3), Place(4)) == epoch + following  # the run that is not interrupted has one loader
    random.seed(5)
    torch.manual_seed(5)
    assert batches(kind, Place(3, 2), Place(4)) == epoch[2:] + following
    assert batches(kind, Place(3, len(epoch), finished=True)) == []
    if kind not in ("list", "stream"):
        assert whole_numbers(following) != whole_numbers(epoch)  # each epoch has its own order


def test_ranks_share_an_order_and_draw_their_own_dropout() -> None:
    orders, drawn = [], []
    for rank in (0, 1, 1, 2):
        torch.manual_seed(rank)
        loader = RepeatableLoader(LOADERS["shuffled"](), 7, lambda: Place(3), rank)
        trained = [(str(batch), torch.rand(()).item()) for batch, _, _ in loader]
        orders.append([batch for batch, _ in trained])
        drawn.append(tuple(number for _, number in trained))
    assert orders[0] == orders[1] == orders[3]
    assert drawn[1] == drawn[2]
    assert len({number for numbers in drawn for number in numbers}) == 3 * len(orders[0])


def test_a_task_has_its_own_attribute_back(tmp_path: Path) -> None:
    task = TinyTask(tmp_path, hidden_size=16, intermediate_size=32)
    task.setup("fit")
    own = vars(task)["train_dataloader"] = task.train_dataloader
    module = PruningModule(task, Hybrid(granularity={"attention": "4x4"}))
    options: dict[str, Any] = {"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    for ends in ([], [Ends()]):
        run = Trainer(max_steps=1, logger=False, callbacks=[*ends], **options)
        with pytest.raises(ZeroDivisionError) if ends else nullcontext():
            run.fit(module, datamodule=task)
        assert isinstance(run.fit_loop._combined_loader, RepeatableLoader)
        assert vars(task)["train_dataloader"] is own


def test_reseeding_draws_apart() -> None:
    drawn = set()
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]:
        reseed(*key)
        drawn.add((torch.rand(()).item(), np.random.rand(), random.random()))
    assert len(drawn) == 4
