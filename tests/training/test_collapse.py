"""A layer of which nothing is left while pruning goes on is named, once."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import cast

import pytest
from tiny_task import TinyTask, trainer

from bplightning.contracts.capabilities import Advising
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.plugins import STRATEGIES, load
from bplightning.strategies.movement import Movement
from bplightning.training.module import PruningModule


class Emptying(Movement):
    """One mask is emptied at step 3, a role at step 9; the target is reached at step 15."""

    def advance(self, progress: Progress) -> None:
        super().advance(progress)
        for name, mask in self.masks.items():
            role_gone = mask.role == "feed_forward" and progress.step >= 9  # type: ignore[operator]
            if role_gone or (name == "encoder-1-self-key" and progress.step >= 3):
                mask.kept.fill_(False)  # type: ignore[operator, union-attr]

    def target_reached(self, progress: Progress) -> bool:
        return progress.step >= 15


def test_it_is_named_once_while_pruning_goes_on(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Emptying(target=Target(density=0.5)))
    run = trainer(tmp_path, val_check_interval=3, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="Nothing is left of") as caught:
        run.fit(module, datamodule=module.task)
    first, second = (str(each.message) for each in caught if "Nothing is left of" in str(each.message))
    assert first.startswith("Nothing is left of encoder-1-self-key at step 3, and pruning continues (density ")
    assert "is gone" not in first
    assert second.startswith("Nothing is left of encoder-0-")
    assert "encoder-1-self-key" not in second
    assert "at step 9" in second
    assert "all of feed_forward is gone" in second
    remedies = "or give a greater strategy.window.initial_warmup, or a finer strategy.granularity."
    assert first.endswith(f"Where the score falls with it: prune less, or train longer; {remedies}")


@pytest.mark.parametrize("name", ["cofi", "hybrid", "l0", "magnitude", "movement", "soft-movement"])
def test_every_setting_that_is_advised_is_one_of_the_strategy_s(name: str) -> None:
    strategy = cast(type[Advising], load(STRATEGIES, name))
    advised = re.findall(r"strategy\.(\w+)", " ".join(strategy.collapse_remedies))
    assert len(advised) == len(strategy.collapse_remedies)
    assert advised
    assert set(advised) <= set(inspect.signature(strategy).parameters)


def test_nothing_is_said_where_something_is_left(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Movement(target=Target(density=0.5)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Nothing is left of")
        trainer(tmp_path, enable_checkpointing=False).fit(module, datamodule=module.task)
