"""Pruning in the transformers Trainer: as `PruningModule` prunes, whatever the Trainer is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from own_module import LEARNING_RATE, WARMUP, InOrder, NotesItsLife, compare, strategy, with_module
from tiny_families import padded_inputs
from tiny_task import rows
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, Trainer, TrainingArguments

from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.integrations.transformers_trainer import PruningTrainer, PruningTrainerCallback
from bplightning.masks.masking import has_masks

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
    args = arguments(folder, **options)
    trainer = InOrderTrainer(model=model, args=args, train_dataset=rows(96, seed=0), callbacks=[callback])  # type: ignore[arg-type]
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


def test_what_is_saved_is_the_pruned_model(tmp_path: Path) -> None:
    trainer, callback = made(tmp_path)
    trainer.train()
    model = trainer.model.float().eval()
    inputs = padded_inputs("right")
    with torch.no_grad():
        masked = model(**inputs).start_logits
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
