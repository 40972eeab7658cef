"""A LightningModule of a user's own, and a `PruningModule` that learns the same, for the callback's tests.

Run as ``python own_module.py FOLDER`` it trains both on two ranks and compares them there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tiny_task import TinyTask, rows
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from transformers import get_linear_schedule_with_warmup

from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.window import PruningWindow
from bplightning.integrations.lightning_callback import PruningCallback
from bplightning.masks.masking import has_masks
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule

LEARNING_RATE, WARMUP = 1e-3, 0.125


class InOrder(TinyTask):
    """No dropout, and rows in their order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        data, trainer = rows(96, seed=0), self.trainer
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        return DataLoader(data, batch_size=8, sampler=DistributedSampler(data, ranks, rank, shuffle=False))


class OwnModule(LightningModule):
    """What `PruningModule` does but for pruning, as a user would write it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = InOrder(folder).build_model().train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.net(**batch).loss)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def strategy() -> Hybrid:
    """One with scores, masks and a penalty that matters."""
    window = PruningWindow(final_warmup=2)
    return Hybrid(window=window, regularization=50, granularity={"attention": "16x16"}, score_learning_rate=2.75)


class NotesItsLife(Hybrid):
    """Notes in which order its hooks are called, and what it may measure."""

    def __init__(self) -> None:
        super().__init__(window=PruningWindow(final_warmup=2), granularity={"attention": "16x16"})
        self.life: list[str] = []
        self.dense: list[nn.Module] = []

    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        self.life.append("prepare")
        self.dense.append(dense())

    def advance(self, progress: Progress) -> None:
        self.life.append("advance")
        super().advance(progress)

    def check(self, trained: nn.Module) -> None:
        """It measured once, before the first step, an ordinary model; and the one that is trained kept its masks."""
        assert self.life[0] == "prepare"
        assert self.life.count("prepare") == 1
        (dense,) = self.dense
        assert dense is not trained
        assert not has_masks(dense)
        assert not dense.training
        assert not any("pruning_strategy" in name for name in dense.state_dict())
        assert has_masks(trained)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "precision": "64-true",  # in which the order of sums makes no difference that could be seen
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **(settings | options))


def with_callback(folder: Path, **options: Any) -> PruningStrategy:
    """What a strategy has learned in a module of one's own."""
    callback, task = PruningCallback(strategy(), warmup=WARMUP), InOrder(folder)
    trainer(folder, callback, **options).fit(OwnModule(folder), datamodule=task)
    return callback.strategy


def with_module(folder: Path, **options: Any) -> PruningStrategy:
    """And in a `PruningModule`."""
    task = InOrder(folder)
    module = PruningModule(task, strategy(), learning_rate=LEARNING_RATE, warmup=WARMUP)
    module.model = task.build_model()  # here, in float32: in the trainer's precision it would be made of other numbers
    trainer(folder, **options).fit(module, datamodule=task)
    return module.strategy


def compare(one: PruningStrategy, other: PruningStrategy, *, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    """Scores, masks and all else that both remember; and that they have pruned."""
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        found = other.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=rtol, atol=atol, msg=lambda text, at=name: f"{at}: {text}")
    assert 0 < float(one.density()["total"]) < 1


def main(folder: Path) -> None:
    """Train both on two ranks, with two batches to a step."""
    options = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    compare(with_module(folder, **options), with_callback(folder, **options))
    print("alike", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
