"""The LightningModule: what it optimizes, when masks move, what validation sees."""

from __future__ import annotations

import copy
import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from tiny_task import TinyTask, rows
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.l0 import L0
from bplightning.strategies.movement import Movement
from bplightning.training.denormals import flushed
from bplightning.training.module import PruningModule, frozen_module


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **(settings | options))


def fixed() -> Hybrid:
    """Pruned by a penalty that is not steered."""
    return Hybrid(window=PruningWindow(final_warmup=2), regularization=20.0, score_learning_rate=2.75)


def pruning(folder: Path, **options: Any) -> PruningModule:
    return PruningModule(TinyTask(folder), fixed(), learning_rate=1e-3, **options)


class Watch(Callback):
    """Writes down what is in force at each batch and each validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.modes: set[bool] = set()
        self.thresholds: list[float] = []
        self.validated: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        self.modes |= {layer.training for layer in module.model.modules()}
        self.thresholds.append(float(module.strategy.score_threshold))

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.validated.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.now = float(module.strategy.density()["total"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_in_every_precision(tmp_path: Path, precision: str) -> None:
    norms: list[float] = []

    class Look(Callback):
        def on_before_zero_grad(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
            gradients = [each.grad for each in module.parameters() if each.grad is not None]
            norms.extend([float(nn.utils.get_total_norm(gradients))] if gradients else [])

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a gradient that kept the scale would be clipped to less
    options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]} if precision == "16-mixed" else {}
    run = trainer(tmp_path, Look(), gradient_clip_val=1e-3, **(options or {"precision": precision}))
    module = pruning(tmp_path)
    run.fit(module, datamodule=module.task)
    assert len(norms) > 5
    assert norms == pytest.approx([1e-3] * len(norms), rel=0.02)


def test_optimizer_groups_hold_each_parameter_once(tmp_path: Path) -> None:
    module = pruning(tmp_path, weight_decay=0.1)
    run = trainer(tmp_path)
    run.fit(module, datamodule=module.task)
    groups = {group["name"]: group for group in run.optimizers[0].param_groups}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "weights": 0.1,
        "no_decay": 0.0,
        "scores": 0.0,
    }
    assert groups["weights"]["initial_lr"] == 1e-3
    assert groups["scores"]["initial_lr"] == 2.75
    grouped = sorted(id(value) for group in groups.values() for value in group["params"])
    assert grouped == sorted(id(value) for value in module.parameters())
    assert all(value.ndim > 1 for value in groups["weights"]["params"])
    assert all(value.ndim == 1 for value in groups["no_decay"]["params"])


def test_training_trains_prunes_and_ends_with_the_last_masks(tmp_path: Path) -> None:
    module, watch = pruning(tmp_path), Watch()
    before = {name: value.clone() for name, value in module.task.build_model().state_dict().items()}
    run = trainer(tmp_path, watch)
    run.fit(module, datamodule=module.task)
    assert watch.modes == {True}  # dropout is on, though `from_pretrained` leaves models in evaluation mode
    assert watch.thresholds == sorted(watch.thresholds)
    assert watch.thresholds[0] == 0
    assert watch.thresholds[-2] == pytest.approx(0.1)
    assert float(module.strategy.score_threshold) == pytest.approx(0.1)
    assert 0 < float(module.strategy.density()["total"]) < 1
    assert all(
        not torch.equal(value, before[name]) for name, value in module.model.named_parameters() if value.ndim > 1
    )


def test_the_penalty_is_part_of_the_loss(tmp_path: Path) -> None:
    densities = []
    for regularization in (0.0, 1000.0):
        torch.manual_seed(0)
        task = TinyTask(tmp_path)
        module = PruningModule(
            task,
            Hybrid(window=PruningWindow(final_warmup=2), regularization=regularization, score_learning_rate=2.75),
            learning_rate=1e-3,
        )
        trainer(tmp_path).fit(module, datamodule=task)
        densities.append(float(module.strategy.density()["total"]))
    assert densities[1] < 0.5 * densities[0]


def test_the_schedule_counts_optimizer_steps(tmp_path: Path) -> None:
    seen: list[Progress] = []
    module = pruning(tmp_path, warmup=1)
    advance = module.strategy.advance
    module.strategy.advance = lambda progress: (seen.append(progress), advance(progress))[1]  # type: ignore[method-assign]
    trainer(tmp_path, accumulate_grad_batches=4).fit(module, datamodule=module.task)
    # At the start, then after each fourth of 24 batches, which makes a step.
    assert [progress.step for progress in seen] == [0, 1, 2, 3, 4, 5, 6]
    assert {(progress.total_steps, progress.warmup_steps) for progress in seen} == {(6, 1)}


def test_half_precision_accumulation_and_clipping_go_with_masks(tmp_path: Path) -> None:
    norms: list[float] = []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            layer = module.model.bert.encoder.layer[0].attention.self.query
            layer.register_forward_hook(lambda *args: kinds.add(args[2].dtype) if module.training else None)

            def clipped(optimizer: torch.optim.Optimizer, *args: Any) -> None:
                values = [value for group in optimizer.param_groups for value in group["params"]]
                norms.append(float(torch.nn.utils.get_total_norm([v.grad for v in values if v.grad is not None])))

            trainer.optimizers[0].register_step_post_hook(clipped)

    kinds: set[torch.dtype] = set()
    task = TinyTask(tmp_path)
    module = PruningModule(
        task, Movement(target=Target(density=0.5), window=PruningWindow(final_warmup=1)), learning_rate=1e-3
    )
    options: dict[str, Any] = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.02}
    trainer(tmp_path, Look(), **options).fit(module, datamodule=task)
    assert kinds == {torch.bfloat16}
    assert norms == pytest.approx([0.02] * 12, rel=1e-2)  # of 24 batches; of weights and scores together
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert float(module.strategy.density()["total"]) == pytest.approx(0.5, abs=0.01)
    kept = {name: int(mask.kept.sum()) for name, mask in module.strategy.masks.items()}  # type: ignore[operator, union-attr]
    query = module.harden().bert.encoder.layer[0].attention.self.query.weight
    assert int((query != 0).sum()) == kept["encoder-0-self-query"]


@pytest.mark.parametrize("accumulated", [1, 4])
def test_after_an_optimizer_step_its_gradients_are_still_there(tmp_path: Path, accumulated: int) -> None:
    norms: dict[str, list[float]] = {"before": [], "after": []}

    class Note(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Any, *args: Any) -> None:
            norms["before"].append(norm(module.layout))

    def norm(layout: Any) -> float:
        return sum(float(member.grad(layout.model).square().sum()) for member in layout.members)

    module = pruning(tmp_path)
    module.strategy.after_optimizer_step = lambda: norms["after"].append(norm(module.layout))  # type: ignore[method-assign]
    trainer(tmp_path, Note(), accumulate_grad_batches=accumulated).fit(module, datamodule=module.task)
    assert len(norms["after"]) == 24 // accumulated
    assert norms["after"] == norms["before"]
    assert all(norms["after"])


def test_learning_rate_rises_and_falls_in_optimizer_steps(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = pruning(tmp_path, warmup=4)
    trainer(tmp_path, Rates()).fit(module, datamodule=module.task)
    assert rates[:6] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3 * 19 / 20])
    assert rates[-1] == pytest.approx(1e-3 / 20)


def test_validation_uses_the_masks_of_that_moment_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, watch = pruning(tmp_path), Watch()
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, watch).fit(module, datamodule=module.task)
    assert watch.validated[-1]["val_density"] == pytest.approx(watch.now)
    assert "Validated with the masks of step 24: density attention" in caplog.text
    # The logged accuracy is the masked model's: hardened, it scores the same.
    expected = watch.validated[-1]["val_accuracy"]
    run = trainer(tmp_path)
    (hardened,) = run.validate(frozen_module(module.task, module.harden(), prefix="masked"), module.task, verbose=False)
    assert hardened == {"masked_accuracy": pytest.approx(expected)}


def test_a_checkpoint_brings_scores_and_threshold_back(tmp_path: Path) -> None:
    module = pruning(tmp_path)
    run = trainer(tmp_path)
    run.fit(module, datamodule=module.task)
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = pruning(tmp_path)
    trainer(tmp_path).validate(
        again, datamodule=again.task, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False
    )
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert float(again.strategy.density()["total"]) == float(module.strategy.density()["total"])


def test_the_logged_values_are_of_the_step_they_stand_in(tmp_path: Path) -> None:
    true: dict[int, tuple[float, float]] = {}

    class Note(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Any, *args: Any) -> None:
            strategy = module.strategy
            true[trainer.global_step] = float(strategy.score_threshold), float(strategy.density()["total"])

    module = pruning(tmp_path)
    run = trainer(tmp_path, Note(), logger=CSVLogger(tmp_path), log_every_n_steps=5)
    run.fit(module, datamodule=module.task)
    rows = list(csv.DictReader((Path(str(run.log_dir)) / "metrics.csv").read_text().splitlines()))
    logged = [row for row in rows if row["density/total"]]
    assert [int(row["step"]) for row in logged] == [4, 9, 14, 19]
    for row in logged:
        values = float(row["score_threshold"]), float(row["density/total"])
        assert values == pytest.approx(true[int(row["step"])])
        assert row["penalty"]
        assert row["task_loss"]


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    module = pruning(tmp_path)
    with pytest.raises(UserError, match=r"no last step, .*: give trainer\.max_steps or trainer\.max_epochs"):
        trainer(tmp_path, max_epochs=-1).fit(module, datamodule=module.task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate is 0; it must be above 0"),
        ({"warmup": -1}, r"warmup is -1; it must be 0"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; it must be 0 or more"),
        ({"adam_epsilon": float("nan")}, r"adam_epsilon is nan; it must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PruningModule(TinyTask(tmp_path), Hybrid(), **options)


def test_a_schedule_without_room_is_refused_before_training(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Hybrid(window=PruningWindow(final_warmup=30)), learning_rate=1e-3)
    with pytest.raises(UserError, match="the pruning schedule has no step left: of 24 optimizer steps"):
        trainer(tmp_path).fit(module, datamodule=module.task)


def test_a_model_is_evaluated_as_it_is_though_its_architecture_is_not_known(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    model = task.build_model()
    model.config.model_type = "unheard-of"
    (found,) = trainer(tmp_path).validate(frozen_module(task, model, prefix="it"), datamodule=task, verbose=False)
    assert set(found) == {"it_accuracy"}


@pytest.mark.parametrize("strategy", [Hybrid(), L0(granularity={"attention": "16x16"})])
def test_checkpointed_layers_give_the_same_gradients_from_less_memory(
    tmp_path: Path, strategy: PruningStrategy
) -> None:
    gradients, kept = [], []
    task = TinyTask(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = next(iter(DataLoader(rows(8, seed=0), batch_size=8)))
    for checkpointing in (False, True):
        module = PruningModule(task, copy.deepcopy(strategy), activation_checkpointing=checkpointing)
        module.configure_model()
        module.strategy.advance(Progress(70, 100, warmup_steps=1))
        saved: dict[int, int] = {}
        with saved_tensors_hooks(lambda value, saved=saved: noted(value, saved), lambda value: value):
            loss = module(batch).loss
        loss.backward()
        gradients.append({name: value.grad for name, value in module.named_parameters() if value.grad is not None})
        kept.append(sum(saved.values()))
    assert gradients[0].keys() == gradients[1].keys()
    assert any("scores" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert kept[1] < 0.2 * kept[0]


def noted(value: Tensor, saved: dict[int, int]) -> Tensor:
    if not isinstance(value, nn.Parameter):
        saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return value


def test_checkpointing_that_a_family_has_not_is_refused(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Hybrid(), activation_checkpointing=True)
    module.model = TinyTask(tmp_path).build_model()
    module.model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="activation_checkpointing is true, which transformers does not have"):
        module.configure_model()


def test_numbers_too_small_for_full_precision_are_zero_while_it_trains(tmp_path: Path) -> None:
    def tenth_of_the_smallest() -> float:
        return float(torch.full((8,), torch.finfo(torch.float32).tiny).mul(0.1)[0])

    seen: list[float] = []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(tenth_of_the_smallest())

    module = pruning(tmp_path)
    trainer(tmp_path, Look(), max_steps=2).fit(module, datamodule=module.task)
    assert seen == [0.0, 0.0]
    assert tenth_of_the_smallest() > 0

    class Fail(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("a disk is full")

    failing = pruning(tmp_path)
    with pytest.raises(RuntimeError, match="a disk is full"):
        trainer(tmp_path, Look(), Fail()).fit(failing, datamodule=failing.task)
    assert seen == [0.0] * 3
    assert tenth_of_the_smallest() > 0


def test_who_has_such_numbers_flushed_keeps_that(tmp_path: Path) -> None:
    module = pruning(tmp_path)
    torch.set_flush_denormal(True)
    try:
        trainer(tmp_path, max_steps=1).fit(module, datamodule=module.task)
        assert flushed()
    finally:
        torch.set_flush_denormal(False)
    assert not flushed()
