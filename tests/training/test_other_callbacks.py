"""Callbacks and tools of Lightning's own in a run that prunes: they work, or are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from own_module import LEARNING_RATE, InOrder, OwnModule, compare, strategy, trainer, with_callback

from bplightning import PruningCallback
from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.stages.pipeline import fit
from bplightning.training.module import PruningModule

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to suggest:UserWarning")


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (EMAWeightAveraging(), "EMAWeightAveraging averages masks and scores as if they were weights"),
        (StochasticWeightAveraging(1e-3), "StochasticWeightAveraging averages masks"),
        (
            LearningRateFinder(),
            r"LearningRateFinder changes a setting .* Tuner\(trainer\).lr_find.* --model.learning_rate",
        ),
        (
            ModelPruning("l1_unstructured"),
            r"ModelPruning prunes by masks of its own, .* that Hybrid masks: leave it out",
        ),
        (BatchSizeFinder(), r"BatchSizeFinder changes a setting .*scale_batch_size.* --task.batch_size"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fit_refuses_what_would_undo_pruning_or_resuming(tmp_path: Path, callback: Callback, message: str) -> None:
    module = PruningModule(InOrder(tmp_path), strategy())
    with pytest.raises(UserError, match=message):
        fit(trainer(tmp_path, callback), module)
    assert not module.configured


def test_weights_may_be_averaged_where_nothing_is_pruned(tmp_path: Path) -> None:
    task = InOrder(tmp_path)
    module = PruningModule(task, PruningStrategy(), learning_rate=LEARNING_RATE)
    with pytest.warns(UserWarning, match="overrides the configure_model"):
        trainer(tmp_path, EMAWeightAveraging(), max_steps=2).fit(module, datamodule=task)


def test_a_learning_rate_is_found_without_pruning_anything(tmp_path: Path) -> None:
    task = InOrder(tmp_path)
    module = PruningModule(task, strategy(), learning_rate=LEARNING_RATE, warmup=0.125)
    module.model = task.build_model()
    found: Any = Tuner(trainer(tmp_path, precision=None)).lr_find(module, datamodule=task, num_training=5)
    assert len(found.results["loss"]) == 5
    assert float(module.strategy.density()["total"]) == 1
    trainer(tmp_path, precision=None).fit(module, datamodule=task)  # and then it trains
    assert module.target_reached()


def test_a_batch_size_is_found_without_pruning_anything(tmp_path: Path) -> None:
    class Sized(InOrder):
        batch_size = 8

    task = Sized(tmp_path)
    module = PruningModule(task, strategy(), learning_rate=LEARNING_RATE, warmup=0.125)
    module.model = task.build_model()
    tuner = Tuner(trainer(tmp_path, precision=None))
    assert tuner.scale_batch_size(module, datamodule=task, steps_per_trial=1, max_trials=2) == 4
    assert float(module.strategy.density()["total"]) == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_callback_may_find_the_learning_rate_of_ones_own_module(tmp_path: Path, first: bool) -> None:
    finder = LearningRateFinder(num_training_steps=5, update_attr=False)
    pruning = PruningCallback(strategy(), warmup=0.125)
    module = OwnModule(tmp_path)
    module.learning_rate = LEARNING_RATE
    callbacks = [pruning, finder]
    trainer(tmp_path, *(callbacks if first else callbacks[::-1])).fit(module, datamodule=InOrder(tmp_path))
    compare(with_callback(tmp_path), pruning.strategy)


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    for options in ({"max_epochs": 0}, {"limit_train_batches": 0}):
        with pytest.raises(UserError, match="the run has no optimizer step, so nothing would be trained or pruned"):
            trainer(tmp_path, PruningCallback(strategy()), **options).fit(
                OwnModule(tmp_path), datamodule=InOrder(tmp_path)
            )
        task = InOrder(tmp_path)
        with pytest.raises(UserError, match="the run has no optimizer step"):
            trainer(tmp_path, **options).fit(PruningModule(task, strategy()), datamodule=task)
