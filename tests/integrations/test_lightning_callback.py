"""Pruning inside a LightningModule of one's own: as `PruningModule` prunes, whatever the trainer is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from own_module import InOrder, NotesItsLife, OwnModule, compare, strategy, trainer, with_callback, with_module
from programs import Program
from tiny_families import padded_inputs
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForQuestionAnswering

from bplightning import PruningCallback
from bplightning.errors import UserError
from bplightning.integrations.lightning_callback import find_model
from bplightning.masks.masking import has_masks
from bplightning.training import PrunedCheckpoint, PrunedEarlyStopping


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.1}],
    ids=["plain", "accumulated", "clipped"],
)
def test_scores_and_masks_are_those_of_a_pruning_module(tmp_path: Path, options: dict[str, Any]) -> None:
    compare(with_module(tmp_path, **options), with_callback(tmp_path, **options))


def test_so_they_are_where_gradients_are_scaled(tmp_path: Path) -> None:
    def scaled() -> dict[str, Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # as on a GPU, but that there it begins higher
        return {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "max_steps": 12}

    compare(with_module(tmp_path, **scaled()), with_callback(tmp_path, **scaled()), rtol=1e-3, atol=1e-4)


@pytest.mark.timeout(300)
def test_so_they_are_on_two_ranks(tmp_path: Path) -> None:
    training = Program(Path(__file__).parents[1] / "support" / "own_module.py", str(tmp_path), cwd=tmp_path)
    assert training.end() == 0, training.said
    assert training.said.count("alike") == 2


def test_a_resumed_run_is_the_run_that_was_interrupted(tmp_path: Path) -> None:
    whole = with_callback(tmp_path, precision=None)
    halted = trainer(tmp_path, PruningCallback(strategy(), warmup=0.125), precision=None)
    module = OwnModule(tmp_path)
    module.on_train_epoch_end = lambda: halted.save_checkpoint(tmp_path / f"{halted.current_epoch}.ckpt")  # type: ignore[method-assign]
    halted.fit(module, datamodule=InOrder(tmp_path))
    again = PruningCallback(strategy(), warmup=0.125)
    goes_on = trainer(tmp_path, again, precision=None)
    goes_on.fit(OwnModule(tmp_path), datamodule=InOrder(tmp_path), ckpt_path=tmp_path / "0.ckpt", weights_only=True)
    assert goes_on.global_step == 24
    compare(whole, again.strategy, rtol=0, atol=0)


def test_a_strategy_may_measure_before_its_first_step(tmp_path: Path) -> None:
    noting, module = NotesItsLife(), OwnModule(tmp_path)
    trainer(tmp_path, PruningCallback(noting, warmup=0.125), precision=None).fit(module, datamodule=InOrder(tmp_path))
    noting.check(module.net)


def test_what_is_saved_is_the_pruned_model(tmp_path: Path) -> None:
    callback, module = PruningCallback(strategy(), warmup=0.125), OwnModule(tmp_path)
    trainer(tmp_path, callback, precision=None).fit(module, datamodule=InOrder(tmp_path))
    module.eval()
    inputs = padded_inputs("right")
    with torch.no_grad():
        masked = module.net(**inputs).start_logits
    callback.save(tmp_path / "compact")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "compact")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).start_logits, masked, rtol=1e-5, atol=1e-5)
        assert torch.equal(module.net(**inputs).start_logits, masked)
    assert loaded.num_parameters() < module.net.num_parameters()
    assert not has_masks(module)
    assert not any("pruning_strategy" in name for name in module.state_dict())
    assert callback.compact().num_parameters() == loaded.num_parameters()


def test_a_checkpoint_read_without_the_callback_holds_the_pruned_weights(tmp_path: Path) -> None:
    callback, module = PruningCallback(strategy(), warmup=0.125), OwnModule(tmp_path)
    training = trainer(tmp_path, callback, precision=None)
    training.fit(module, datamodule=InOrder(tmp_path))
    training.save_checkpoint(tmp_path / "whole.ckpt")
    training.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "own.ckpt")
    inputs, module = padded_inputs("right"), module.eval()
    for name in ("whole", "weights"):
        file = tmp_path / f"{name}.ckpt"
        with pytest.warns(UserWarning, match=r"not in the model state dict .*'pruning_strategy\.score_threshold'"):
            read = OwnModule.load_from_checkpoint(file, folder=tmp_path, strict=False, weights_only=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(read.net(**inputs).start_logits, module.net(**inputs).start_logits)
    bare = OwnModule(tmp_path).eval()
    bare.load_state_dict(torch.load(tmp_path / "own.ckpt", weights_only=True)["state_dict"], strict=False)
    with torch.no_grad():
        torch.testing.assert_close(bare.net(**inputs).start_logits, module.net(**inputs).start_logits)
    assert has_masks(module)


class Averages(Callback):
    """An average of one's own, by torch's class."""

    def __init__(self, module: nn.Module) -> None:
        self.average = AveragedModel(module)


AVERAGING = {
    "EMA": lambda module: EMAWeightAveraging(decay=0.9),
    "plain": lambda module: WeightAveraging(),
    "SWA": lambda module: StochasticWeightAveraging(swa_lrs=1e-3),
    "torch": Averages,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", AVERAGING)
def test_callbacks_that_average_masks_are_refused_in_any_order(tmp_path: Path, kind: str, first: bool) -> None:
    module = OwnModule(tmp_path)
    callbacks = [PruningCallback(strategy()), AVERAGING[kind](module)]
    with pytest.raises(UserError, match=r"averages masks and scores as if they were weights, .* leave it out"):
        trainer(tmp_path, *(callbacks[::-1] if first else callbacks)).fit(module, datamodule=InOrder(tmp_path))


def test_only_a_model_at_its_target_is_the_best_or_ends_the_run(tmp_path: Path) -> None:
    class Worse(OwnModule):
        def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", float(self.global_step))

    keep, stop = (
        PrunedCheckpoint("val_loss", mode="min", dirpath=str(tmp_path)),
        PrunedEarlyStopping("val_loss", patience=1),
    )
    callback = PruningCallback(strategy(), warmup=0.125)
    options = {"enable_checkpointing": True, "precision": None, "val_check_interval": 3}
    training = trainer(tmp_path, callback, keep, stop, **options)
    training.fit(Worse(tmp_path), datamodule=InOrder(tmp_path))
    assert Path(keep.best_model_path).name == "best-step=18.ckpt"  # 24 steps, of which the window leaves the last 6
    assert training.global_step == 21
    assert callback.target_reached()


def test_choices_and_ends_that_do_not_know_of_pruning_are_told_of(tmp_path: Path) -> None:
    callbacks = (
        PruningCallback(strategy(), warmup=0.125),
        EarlyStopping("val_loss"),
        ModelCheckpoint(monitor="val_loss"),
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer(tmp_path, *callbacks, max_time={"milliseconds": 1}, enable_checkpointing=True).fit(
            OwnModule(tmp_path), datamodule=InOrder(tmp_path)
        )
    said = " ".join(str(each.message) for each in told)
    assert "EarlyStopping may stop this run before it is fully pruned: use bplightning.training.Pruned" in said
    assert "ModelCheckpoint(monitor='val_loss') may choose a best model that is not fully pruned" in said
    assert "of 24, before Hybrid reached its target, and the density is 1.00: the model is not fully pruned" in said


def test_a_model_that_is_built_late_is_pruned_too(tmp_path: Path) -> None:
    class Late(OwnModule):
        def __init__(self, folder: Path) -> None:
            LightningModule.__init__(self)
            self.built = [InOrder(folder).build_model().train()]  # no module of this one yet

        def configure_model(self) -> None:
            if self.built:
                self.net = self.built.pop()

    callback = PruningCallback(strategy(), warmup=0.125)
    module = Late(tmp_path)
    trainer(tmp_path, callback).fit(module, datamodule=InOrder(tmp_path))
    compare(with_callback(tmp_path), callback.strategy)
    assert "configure_model" not in vars(module)


def test_the_model_is_the_only_one_or_the_one_that_is_named(tmp_path: Path) -> None:
    model, other = InOrder(tmp_path).build_model(), InOrder(tmp_path).build_model()
    inside = nn.ModuleDict({"student": model, "head": nn.Linear(1, 1)})
    both = nn.ModuleDict({"student": model, "teacher": other})
    assert find_model(inside, None) is model
    assert find_model(both, "teacher") is other
    assert find_model(both, "student.bert") is model.bert
    for module, path, message in (
        (both, None, r"holds 2 transformers models \('student', 'teacher'\), but exactly one is pruned: give model"),
        (nn.ModuleDict({"head": inside["head"]}), None, r"holds no transformers models, .* build it in __init__"),
        (inside, "head", r"model is 'head', which is a Linear in ModuleDict: .* there are: 'student'\."),
        (inside, "pupil", r"model is 'pupil', which is not there"),
    ):
        with pytest.raises(UserError, match=message):
            find_model(module, path)


def test_what_cannot_be_pruned_so_is_refused(tmp_path: Path) -> None:
    class Two(OwnModule):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    with pytest.raises(UserError, match=r"Two has 2 optimizers, but PruningCallback needs exactly one"):
        trainer(tmp_path, PruningCallback(strategy())).fit(Two(tmp_path), datamodule=InOrder(tmp_path))
    with pytest.raises(UserError, match="nothing has been pruned yet"):
        PruningCallback(strategy()).compact()
    with pytest.raises(UserError, match="warmup is -1; it must be 0 or more"):
        PruningCallback(strategy(), warmup=-1)
    used = PruningCallback(strategy(), warmup=0.125)
    trainer(tmp_path, used, max_steps=12).fit(OwnModule(tmp_path), datamodule=InOrder(tmp_path))
    with pytest.raises(UserError, match="has pruned another module: make one for each"):
        trainer(tmp_path, used, max_steps=12).fit(OwnModule(tmp_path), datamodule=InOrder(tmp_path))
