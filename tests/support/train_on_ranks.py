"""Trains with every strategy in float64 on as many processes as it is told, and saves scores and masks.

Run as ``python train_on_ranks.py RANKS FOLDER``; with two ranks it starts the second process itself, as Lightning does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from made_tables import made_table
from taylor_pruning import TaylorPruning
from tiny_task import TinyTask, rows
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import Target
from bplightning.distillation.distillation import Distillation
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.l0 import L0
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.movement import Movement
from bplightning.strategies.soft_movement import SoftMovement
from bplightning.strategies.ziplm.ziplm import ZipLM
from bplightning.training.module import PruningModule

STEPS = 32
BATCH = 16
TILES = {"attention": "16x16"}
TABLE = "table.json"
STRATEGIES: dict[str, Callable[[], PruningStrategy]] = {
    "hybrid": lambda: Hybrid(granularity=TILES),
    "hybrid-taught": lambda: Hybrid(granularity=TILES),
    "hybrid-to-density": lambda: Hybrid(target=Target(density=0.4), granularity=TILES),
    "soft-movement": lambda: SoftMovement(granularity={"attention": "4x4", "feed_forward": "4x4"}),
    "movement": lambda: Movement(target=Target(density=0.3)),
    "magnitude": lambda: Magnitude(target=Target(density=0.3)),
    "l0": lambda: L0(granularity={"attention": "4x4"}),
    "cofi": lambda: CoFi(target=Target(density=0.4)),
    # By gradients after the step: they must be those of all ranks.
    "taylor": lambda: TaylorPruning(target=Target(density=0.3)),
    # By calibration data, which is that of all ranks together.
    "ziplm": lambda: ZipLM(
        target=Target(latency_speedup=[1.4, 1.8], latency_table=TABLE), calibration_examples=64, search_tries=5
    ),
}


class Plain(TinyTask):
    """No dropout, and rows in their order, so that two ranks' batches are the halves of one process's."""

    def __init__(self, folder: Path, ranks: int) -> None:
        super().__init__(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.rows_of_a_rank = BATCH // ranks

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        data = rows(96, seed=0)
        order = DistributedSampler(data, self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=self.rows_of_a_rank, sampler=order)


@torch.no_grad()
def save_teacher(task: TinyTask, folder: Path) -> None:
    """A model that wants other answers than the one that learns begins with."""
    teacher = task.build_model()
    teacher.qa_outputs.weight.neg_()
    teacher.save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)


def main(ranks: int, folder: Path) -> None:
    """Train with each."""
    os.chdir(folder)
    made_table(PrunableLayout.of(Plain(folder, ranks).build_model())).save(Path(TABLE))
    teacher = Path(f"teacher-{os.environ.get('LOCAL_RANK', 0)}")
    save_teacher(Plain(folder, ranks), teacher)
    for name, strategy in STRATEGIES.items():
        torch.manual_seed(0)
        learning = Distillation(str(teacher), alpha_hidden=0.1) if name.endswith("-taught") else None
        module = PruningModule(Plain(folder, ranks), strategy(), learning_rate=3e-3, distillation=learning)
        trainer = Trainer(
            accelerator="cpu",
            devices=ranks,
            strategy="ddp" if ranks > 1 else "auto",
            precision="64-true",
            max_steps=STEPS,
            limit_val_batches=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=module.task)
        if trainer.is_global_zero:
            torch.save(module.state_dict(), folder / f"{name}-{ranks}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
