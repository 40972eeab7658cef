"""A run whose numbers are no longer numbers ends, says where that began, and leaves the last good checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from programs import Program
from tiny_task import TinyTask

from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.movement import Movement
from bplightning.training.guards import FiniteGuard, all_finite
from bplightning.training.kept_checkpoints import LastCheckpoint
from bplightning.training.module import PruningModule


class Spoil(Callback):
    """Makes something NaN, or too large for float16, before the fifth batch, and whole again after it if asked to."""

    def __init__(self, what: str, once: bool = False) -> None:
        self.what = what
        self.once = once

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
        elif self.what == "large":
            model.bert.encoder.layer[0].intermediate.dense.bias.data[0] = 1e5

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if self.once:
            vars(module.task).pop("loss", None)


def train(folder: Path, *callbacks: Callback, strategy: Any = None, ranks: Any = "auto", **options: Any) -> Trainer:
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    strategy = strategy or Hybrid(window=PruningWindow(final_warmup=2), granularity={"attention": "4x4"})
    run = Trainer(
        callbacks=[*callbacks, LastCheckpoint()],
        accelerator="cpu",
        strategy=ranks,
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
        ("scores", r"is NaN or infinite at optimizer step 5, first found in scores of mask encoder-0-self-key:"),
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


def half(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_what_overflows_in_half_precision_only_is_found_there(tmp_path: Path) -> None:
    where = r"the output of bert\.encoder\.layer\.0\.intermediate\.dense: .*trainer\.precision \(now 16-mixed\)"
    with pytest.raises(UserError, match=rf"the loss is .* {where}"):
        train(tmp_path, Spoil("large"), plugins=[half(1.0)])


def test_a_scaler_is_given_its_chance(tmp_path: Path) -> None:
    assert train(tmp_path, Spoil("loss", once=True), plugins=[half(4.0)], max_steps=10).global_step == 10
    # From 4 it comes down to 1 in the steps 5 and 6.
    with pytest.raises(UserError, match=r"the loss is NaN or infinite at optimizer step 7, .*the task's loss"):
        train(tmp_path, Spoil("loss"), plugins=[half(4.0)], max_steps=10)
    with pytest.raises(UserError, match=r"optimizer step 5, first found in scores of mask"):
        train(tmp_path, Spoil("scores"), plugins=[half(4.0)], max_steps=10)


def test_a_rank_whose_values_are_finite_says_that_anothers_are_not(tmp_path: Path) -> None:
    class OneOfTwo(SingleDeviceStrategy):
        other_is_bad = False

        def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
            return decision or self.other_is_bad

    class OtherSpoils(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
            trainer.strategy.other_is_bad = index == 4  # type: ignore[attr-defined]

    with pytest.raises(
        UserError, match=r"a value is NaN .* step 5, first found in another rank, whose own message has more:"
    ):
        train(tmp_path, OtherSpoils(), ranks=OneOfTwo(torch.device("cpu")))


ON_A_RANK = """
from pathlib import Path

from lightning.pytorch import Callback
from tiny_task import TinyTask, trainer

from bplightning.errors import UserError
from bplightning.training.module import PruningModule
from bplightning.strategies.hybrid import Hybrid


class SpoilTheSecond(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 3 and trainer.global_rank == 1:
            layer = module.model.bert.encoder.layer[0].intermediate
            layer.register_forward_hook(lambda *args: args[2] * float("nan"))


task = TinyTask(Path(), hidden_size=16, intermediate_size=32)
module = PruningModule(task, Hybrid(granularity={"attention": "4x4"}), learning_rate=1e-3)
options = {"devices": 2, "strategy": "ddp", "logger": False, "enable_checkpointing": False}
run = trainer(Path(), callbacks=[SpoilTheSecond()], **options)
try:
    run.fit(module, datamodule=task)
except UserError as error:
    Path(f"rank {run.global_rank} ended").write_text(str(error))  # what two ranks print may run together
"""


@pytest.mark.timeout(240)
def test_one_rank_of_two_stops_both_and_names_the_module(tmp_path: Path) -> None:
    (tmp_path / "spoiled.py").write_text(ON_A_RANK)
    training = Program(
        tmp_path / "spoiled.py", cwd=tmp_path, variables={"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    )
    training.end()
    ended = {path.name: path.read_text() for path in tmp_path.glob("rank * ended")}
    assert ended.keys() == {"rank 0 ended", "rank 1 ended"}, training.said
    at = "is NaN or infinite at optimizer step 4, first found in"
    assert ended["rank 1 ended"].startswith(
        f"the loss {at} the output of bert.encoder.layer.0.intermediate: lower the learning"
    )
    assert ended["rank 0 ended"].startswith(
        f"a value {at} another rank, whose own message has more: lower the learning"
    )


def test_scores_are_looked_at_where_the_loss_does_not_show_them(tmp_path: Path) -> None:
    strategy = Movement(
        target=Target(density=0.5),
        window=PruningWindow(initial_warmup=0, final_warmup=2),
        granularity={"attention": "4x4"},
    )
    with pytest.raises(UserError, match=r"a score is NaN .* optimizer step 5, first found in scores of mask"):
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


def test_scores_of_16_bits_which_would_never_move_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores of Hybrid are bfloat16, .* give trainer\.precision bf16-mixed or 32-"):
        train(tmp_path, precision="bf16-true")


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
