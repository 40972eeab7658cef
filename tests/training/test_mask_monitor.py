"""What is seen while a network is pruned: flips, heads left, advice, a teacher that is worse."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_families import tiny
from tiny_task import TinyTask, trainer

from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.distillation.distillation import Distillation
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.movement import Movement
from bplightning.training.mask_monitor import heads_left
from bplightning.training.module import PruningModule


class Scripted(Movement):
    """Movement whose masks do what a script says."""

    def advance(self, progress: Progress) -> None:
        mask = self.masks["encoder-0-self-value"]
        if progress.step == 4:
            mask.kept[:2] = False  # type: ignore[operator, index]
        if progress.step == 5:
            mask.kept[0] = True  # type: ignore[operator, index]
            mask.kept[2:6] = False  # type: ignore[operator, index]


class Values(Callback):
    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_flips_are_counted_since_the_last_validation_and_heads_by_layer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Scripted(granularity={"attention": "8x8", "feed_forward": "unit"})
    module = PruningModule(TinyTask(tmp_path), strategy)
    values = Values()
    run = trainer(tmp_path, callbacks=[values], val_check_interval=3, max_steps=9, enable_checkpointing=False)
    with caplog.at_level(logging.INFO):
        run.fit(module, datamodule=module.task)
    first, second, third = values.found[:3]
    entries = sum(mask.kept.numel() for mask in strategy.all_masks)
    assert "val_mask_flips" not in first
    assert second["val_mask_flips"] == pytest.approx(5 * 8 / entries)  # rows 1 to 5 of 8 tiles; row 0 came back
    assert third["val_mask_flips"] == 0
    assert (first["heads/encoder.0.self"], second["heads/encoder.0.self"]) == (2, 2)
    assert "% of the masks' entries flipped since the last validation; heads left by layer: 2 2." in caplog.text
    strategy.masks["encoder-0-self-value"].kept[:4] = False  # type: ignore[operator, index]
    assert module.layout is not None
    assert heads_left(module.layout, strategy) == {"encoder.0.self": 1, "encoder.1.self": 2}


def test_scores_that_cannot_reach_the_threshold_are_told_of_before_training(tmp_path: Path) -> None:
    window = PruningWindow(final_warmup=2)
    slow = Hybrid(window=window, regularization=20.0, score_learning_rate=1e-4)
    module = PruningModule(TinyTask(tmp_path), slow)
    run = trainer(tmp_path, max_steps=40, enable_checkpointing=False, limit_val_batches=0)
    expected = (
        r"score_learning_rate is 0\.0001, and pruning ends at step \d+: until then scores can move by 0\.00\d+, and"
    )
    with pytest.warns(UserWarning, match=expected):
        run.fit(module, datamodule=module.task)
    fitting = Hybrid(window=window, regularization=20.0, score_learning_rate=1.65)
    assert fitting.target.kind is None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "score_learning_rate")
        again = PruningModule(TinyTask(tmp_path), fitting)
        trainer(tmp_path, max_steps=40, enable_checkpointing=False).fit(again, datamodule=again.task)


def test_saturated_scores_are_told_of_while_pruning_goes_on(tmp_path: Path) -> None:
    fixed = Hybrid(window=PruningWindow(final_warmup=2), regularization=20.0, score_learning_rate=3.3)
    module = PruningModule(TinyTask(tmp_path), fixed)
    run = trainer(tmp_path, max_steps=20, enable_checkpointing=False)
    run.fit(module, datamodule=module.task)
    middle = Progress(step=10, total_steps=100, warmup_steps=5)
    for mask in module.strategy.all_masks:
        mask.scores.data.zero_()  # type: ignore[union-attr]
    assert module.strategy.advice(middle) == []
    with torch.no_grad():
        for mask in module.strategy.all_masks:
            if mask.role == "attention":
                mask.set_grid(torch.ones_like(mask.kept))
                mask.scores.fill_(11.0)  # type: ignore[union-attr]
    (line,) = module.strategy.advice(middle)
    assert line.startswith("more than half of the scores of attention that are kept lie above 9.2, where the penalty")
    assert module.strategy.advice(Progress(step=100, total_steps=100, warmup_steps=5)) == []


def test_a_fixed_penalty_in_a_short_run_is_told_of_before_training() -> None:
    strategy = Hybrid(regularization=20.0)
    strategy.attach(PrunableLayout.of(tiny("bert", hidden_size=64, num_attention_heads=2)))
    for steps, told in ((126, True), (500, False)):
        strategy.advance(Progress(0, steps, warmup_steps=6))
        lines = [line for line in strategy.advice(Progress(0, steps, warmup_steps=6)) if line.startswith("regulariz")]
        assert bool(lines) is told
        assert not told or "it counts as 5.04, and no less than 0.05 of the weights is kept. Give a target" in lines[0]
    steered = Hybrid()
    steered.attach(PrunableLayout.of(tiny("bert", hidden_size=64, num_attention_heads=2)))
    assert steered.advice(Progress(0, 126, warmup_steps=6)) == []


@pytest.mark.parametrize("bad", [True, False])
def test_a_teacher_that_is_worse_than_its_student_is_told_of(tmp_path: Path, bad: bool) -> None:
    task = TinyTask(tmp_path)
    teacher = task.build_model()
    if bad:  # it says that the answer is always the last token
        with torch.no_grad():
            teacher.qa_outputs.weight.zero_()
            teacher.bert.embeddings.position_embeddings.weight[-1] += 50
            teacher.qa_outputs.weight[0] = teacher.bert.embeddings.position_embeddings.weight[-1]
    else:
        dense = PruningModule(task, Movement(target=Target(density=1.0)), learning_rate=5e-3)
        trainer(tmp_path, max_epochs=30, enable_checkpointing=False).fit(dense, datamodule=task)
        teacher = dense.harden()
    teacher.save_pretrained(tmp_path / "teacher")
    settings = Distillation(teacher=str(tmp_path / "teacher"), alpha_ce=1.0, alpha_teacher=0.0)
    module = PruningModule(
        task,
        Movement(target=Target(density=0.9), window=PruningWindow(final_warmup=2)),
        learning_rate=5e-3,
        distillation=settings,
    )
    run = trainer(tmp_path, max_epochs=3 if not bad else 30, enable_checkpointing=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, datamodule=task)
    said = [str(each.message) for each in caught if "holds the model back" in str(each.message)]
    assert len(said) == (1 if bad else 0), said
