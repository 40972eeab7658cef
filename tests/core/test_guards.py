"""A run whose numbers are no longer numbers ends, says where that began, and leaves the last good checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_task import TinyTask

from bplightning.checkpoints import LastCheckpoint
from bplightning.errors import UserError
from bplightning.guards import FiniteGuard, all_finite
from bplightning.module import PruningModule
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.movement import Movement


class Spoil(Callback):
    """Makes something NaN before the fifth batch."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        if index != 4:
            return
        model = module.model
        if self.what == "scores":
            module.strategy.all_masks[1].scores.data[0, 0] = float("nan")
        elif self.what == "weights":
            model.get_parameter("bert.encoder.layer.1.attention.self.query.bias").data[0] = float("inf")
        elif self.what == "output":
            model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *args: args[2] * float("nan"))
        elif self.what == "loss":
            module.task.loss = lambda outputs, batch: outputs.loss * float("nan")


def train(folder: Path, *callbacks: Callback, strategy: Any = None, **options: Any) -> Trainer:
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    strategy = strategy or Hybrid(final_warmup=2, granularity={"attention": "4x4"})
    run = Trainer(
        callbacks=[*callbacks, LastCheckpoint()],
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **({"val_check_interval": 3} | options),
    )
    run.fit(PruningModule(task, strategy, learning_rate=1e-3), datamodule=task)
    return run


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("scores", r"is NaN or infinite at optimizer step 5, first of all scores of mask encoder-0-self-key:"),
        ("weights", r"the loss is .* weights of bert\.encoder\.layer\.1\.attention\.self\.query\.bias:"),
        ("output", r"the loss is .* the output of bert\.encoder\.layer\.0\.intermediate:"),
        ("loss", r"the loss is .* the task's loss or the strategy's penalty itself:"),
    ],
)
def test_it_says_where_it_began_and_keeps_what_was_good(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as stopped:
        train(tmp_path, Spoil(what))
    good = tmp_path / "checkpoints" / "last.ckpt"
    assert f"The last good checkpoint is kept: {good}" in str(stopped.value)
    assert "lower the learning rates (now weights 0.0" in str(stopped.value)
    assert "trainer.precision (now 32-true)" in str(stopped.value)
    kept = torch.load(good, weights_only=True)
    assert kept["global_step"] == 3
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_scores_are_looked_at_where_the_loss_does_not_show_them(tmp_path: Path) -> None:
    strategy = Movement(density=0.5, initial_warmup=0, final_warmup=2, granularity={"attention": "4x4"})
    with pytest.raises(UserError, match=r"a score is NaN .* optimizer step 5, first of all scores of mask"):
        train(tmp_path, Spoil("scores"), strategy=strategy)


def test_no_checkpoint_is_written_of_what_is_not_finite(tmp_path: Path) -> None:
    class Late(Callback):
        def on_validation_end(self, trainer: Trainer, module: Any) -> None:
            module.model.qa_outputs.bias.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"a weight or score is NaN .*qa_outputs\.bias.*No checkpoint had been written"):
        train(tmp_path, Late())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_validation_does_not_begin_with_what_is_not_finite(tmp_path: Path) -> None:
    class Late(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                module.model.qa_outputs.bias.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"a weight is NaN or infinite at .*weights of qa_outputs\.bias"):
        train(tmp_path, Late(), max_steps=3)


def test_large_numbers_are_finite() -> None:
    assert all_finite([torch.full((4,), 3e38), torch.zeros(2, dtype=torch.int64)])
    assert not all_finite([torch.zeros(3), torch.tensor([1.0, float("-inf")])])
    assert not all_finite([torch.tensor([float("inf"), float("-inf")])])


def test_an_accelerator_is_not_waited_for_but_in_the_steps_that_are_logged(tmp_path: Path) -> None:
    elsewhere = torch.zeros((), device="meta")  # whose value nobody can ask for
    module = PruningModule(TinyTask(tmp_path), Hybrid())
    for every, waits in ((50, False), (0, False), (1, True)):
        run = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=every)
        with pytest.raises((RuntimeError, NotImplementedError)) if waits else nullcontext():
            FiniteGuard().on_before_backward(run, module, elsewhere)
