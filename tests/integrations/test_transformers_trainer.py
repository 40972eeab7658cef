"""Pruning in the transformers Trainer: as `PruningModule` prunes, whatever the Trainer is told."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from own_module import LEARNING_RATE, WARMUP, InOrder, NotesItsLife, compare, strategy, with_module
from safetensors.torch import load_file
from tiny_families import padded_inputs
from tiny_task import rows
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForQuestionAnswering,
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.integrations.transformers_trainer import PruningTrainer, PruningTrainerCallback
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import has_masks
from bplightning.strategies.l0 import L0

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")

STEPS = 24


class InOrderTrainer(PruningTrainer):
    """With rows in their order."""

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": round(WARMUP * STEPS),
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**(settings | options))


def made(
    folder: Path, pruned_by: PruningStrategy | None = None, **options: Any
) -> tuple[PruningTrainer, PruningTrainerCallback]:
    callback = PruningTrainerCallback(pruned_by or strategy())
    model = InOrder(folder).build_model()
    data: dict[str, Any] = {"train_dataset": rows(96, seed=0), "eval_dataset": options.pop("eval_dataset", None)}
    trainer = InOrderTrainer(model=model, args=arguments(folder, **options), callbacks=[callback], **data)
    model.double()  # in which the order of sums makes no difference that could be seen
    return trainer, callback


def test_a_strategy_may_measure_before_its_first_step(tmp_path: Path) -> None:
    noting = NotesItsLife()
    trainer, _ = made(tmp_path, noting)
    trainer.train()
    noting.check(trainer.model)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 3, "warmup_steps": 1}, {"accumulate_grad_batches": 3}),
        ({"max_grad_norm": 0.1}, {"gradient_clip_val": 0.1}),
    ],
    ids=["plain", "accumulated", "clipped"],
)
def test_scores_and_masks_are_those_of_a_pruning_module(
    tmp_path: Path, here: dict[str, Any], there: dict[str, Any]
) -> None:
    trainer, callback = made(tmp_path, **here)
    trainer.train()
    # accelerate's norm has 1e-6 added to it.
    compare(with_module(tmp_path, **there), callback.strategy, rtol=1e-5, atol=1e-6)


def test_so_they_are_where_gradients_are_scaled(tmp_path: Path) -> None:
    trainer, callback = made(tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # as fp16 has it, on a GPU only
    trainer.train()
    compare(with_module(tmp_path), callback.strategy, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_is_the_run_that_was_interrupted(tmp_path: Path) -> None:
    whole, first = made(tmp_path, save_strategy="epoch")
    whole.train()
    again, second = made(tmp_path, save_strategy="epoch")
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-12"))
    assert again.state.global_step == STEPS
    compare(first.strategy, second.strategy, rtol=0, atol=0)
    for one, two in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_checkpoint_without_masks_or_of_another_strategy_is_not_resumed(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, save_strategy="epoch")
    trainer.train()
    folder = tmp_path / "trainer" / "checkpoint-12"
    other, _ = made(tmp_path, L0())
    with pytest.raises(UserError, match=r"pruning_state.pt' is damaged, or of another model or strategy \('"):
        other.train(resume_from_checkpoint=str(folder))
    (folder / "pruning_state.pt").unlink()
    again, _ = made(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint-12' has no pruning_state.pt, .* from which pruning resumes"):
        again.train(resume_from_checkpoint=str(folder))


def test_what_the_trainer_saves_while_there_are_masks_is_the_pruned_model(tmp_path: Path) -> None:
    trainer, callback = made(tmp_path, save_strategy="epoch")
    trainer.train()
    model = trainer.model.eval()
    trainer.save_model(str(tmp_path / "saved"))
    model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())
    inputs, density = padded_inputs("right"), float(callback.strategy.density()["total"])
    for folder in ("saved", "given", "trainer/checkpoint-24"):
        again = AutoModelForQuestionAnswering.from_pretrained(tmp_path / folder)
        with torch.no_grad():
            torch.testing.assert_close(again(**inputs).start_logits, model(**inputs).start_logits)
        weights = [member.weight(again) for member in PrunableLayout.of(again).members]
        kept = sum(int((weight != 0).sum()) for weight in weights) / sum(map(torch.numel, weights))
        assert kept == pytest.approx(density, abs=0.01)
        assert set(load_file(tmp_path / folder / "model.safetensors")) == set(again.state_dict())
    assert has_masks(model)


def test_the_best_model_and_early_stopping_wait_for_the_target(tmp_path: Path) -> None:
    worse = [0.9, 0.8, 0.5, 0.7, 0.6, 0.4]
    trainer, callback = made(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=4,
        save_steps=4,
        eval_dataset=rows(8, seed=1),
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer.evaluation_loop = lambda *_, **__: EvalLoopOutput([], [], {"eval_score": worse.pop(0)}, 1)  # type: ignore[method-assign]
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert callback.target_reached(trainer.args, trainer.state)
    assert trainer.state.best_global_step == 20
    reached = {name: value.clone() for name, value in callback.strategy.state_dict().items()}
    saved = torch.load(tmp_path / "trainer" / "checkpoint-20" / "pruning_state.pt", weights_only=True)
    for name, value in reached.items():
        assert torch.equal(value, saved[f"pruning_strategy.{name}"]), name


def test_a_run_that_ends_before_its_target_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    trainer, _ = made(tmp_path)
    trainer.add_callback(Stop())
    getLogger("transformers").propagate = True
    trainer.train()
    assert "training ended at optimizer step 6 of 24, before Hybrid reached its target" in caplog.text


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_saved_is_the_pruned_model(tmp_path: Path, bf16: bool) -> None:
    trainer, callback = made(tmp_path, bf16=bf16)
    trainer.model.float()
    trainer.train()
    model = trainer.model.eval()
    inputs = padded_inputs("right")
    with torch.no_grad():
        masked = type(model).forward(model, **inputs).start_logits
    callback.save(tmp_path / "compact")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "compact")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).start_logits, masked, rtol=1e-5, atol=1e-5)
    assert loaded.num_parameters() < model.num_parameters()
    assert not has_masks(model)
    assert not any("pruning_strategy" in name for name in model.state_dict())


def test_density_is_logged_beside_the_loss(tmp_path: Path) -> None:
    trainer, callback = made(tmp_path, logging_steps=STEPS)
    trainer.train()
    (logged,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["density/total"] == pytest.approx(float(callback.strategy.density()["total"]))


def test_what_would_prune_wrongly_is_refused(tmp_path: Path) -> None:
    model = InOrder(tmp_path).build_model()
    data: Any = rows(8, seed=0)
    plain = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=data, callbacks=[PruningTrainerCallback(strategy())]
    )
    with pytest.raises(UserError, match=r"would train no scores .* use .*PruningTrainer, or put PruningTrainerMixin"):
        plain.train()
    with pytest.raises(UserError, match="PruningTrainer has no PruningTrainerCallback, but needs one"):
        PruningTrainer(model=model, args=arguments(tmp_path), train_dataset=data).train()
    with pytest.raises(UserError, match=r"model is a Linear; only transformers models"):
        PruningTrainer(model=nn.Linear(1, 1), args=arguments(tmp_path), callbacks=[PruningTrainerCallback(strategy())])
    with pytest.raises(UserError, match="nothing has been pruned yet"):
        PruningTrainerCallback(strategy()).compact()


@pytest.mark.parametrize(
    ("way", "given"),
    [("FSDP", {"fsdp": "full_shard"}), ("DeepSpeed", {"deepspeed": {"x": 1}}), ("DataParallel", {"n_gpu": 2})],
)
def test_parts_and_copies_of_weights_are_refused(tmp_path: Path, way: str, given: dict[str, Any]) -> None:
    # None can be set up without the hardware it is for: only what is looked at stands there.
    args: Any = SimpleNamespace(**{"fsdp": None, "deepspeed": None, "n_gpu": 1} | given)
    model: PreTrainedModel = InOrder(tmp_path).build_model()
    with pytest.raises(UserError, match=f"would train with {way}, where"):
        PruningTrainerCallback(strategy()).on_init_end(args, None, None, model=model)  # type: ignore[arg-type]
