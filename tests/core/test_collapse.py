"""A layer of which nothing is left while pruning goes on is named, once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tiny_task import TinyTask, trainer

from bplightning.module import PruningModule
from bplightning.strategies.movement import Movement
from bplightning.strategy import Progress


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
    module = PruningModule(TinyTask(tmp_path), Emptying(density=0.5))
    run = trainer(tmp_path, val_check_interval=3, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="Nothing is left of") as caught:
        run.fit(module, datamodule=module.task)
    first, second = (str(each.message) for each in caught if "Nothing is left of" in str(each.message))
    assert first.startswith("Nothing is left of encoder-1-self-key at step 3, and pruning goes on (density ")
    assert "is gone" not in first
    assert second.startswith("Nothing is left of encoder-0-")
    assert "encoder-1-self-key" not in second
    assert "at step 9" in second
    assert "all of feed_forward is gone" in second


def test_nothing_is_said_where_something_is_left(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Movement(density=0.5))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Nothing is left of")
        trainer(tmp_path, enable_checkpointing=False).fit(module, datamodule=module.task)
