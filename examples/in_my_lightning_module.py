"""Prune the transformers model inside a LightningModule of your own, by one callback.

    python examples/in_my_lightning_module.py compact --steps 300

The module below is any module: it knows nothing of pruning. Its data and its small pretrained model are made up and
come with bplightning, so that this runs anywhere; put yours in their place.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from bplightning import PruningCallback, PruningWindow, Target
from bplightning.strategies.hybrid import Hybrid
from bplightning.tasks.classification import Classification


class Reviewer(LightningModule):
    """Tells good notes from bad ones."""

    def __init__(self, data: Classification) -> None:
        super().__init__()
        self.data = data
        self.net = data.build_model().train()  # as from AutoModelForSequenceClassification.from_pretrained

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The model's own loss."""
        loss: Tensor = self.net(**self.data.model_inputs(batch)).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, and a learning rate that falls."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, round(0.05 * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(out: Path, steps: int) -> None:
    """Train, prune and save."""
    seed_everything(0)
    data = Classification(max_length=64)
    module = Reviewer(data)
    pruning = PruningCallback(Hybrid(Target(density=0.25), window=PruningWindow(final_warmup=4)))
    trainer = Trainer(max_steps=steps, callbacks=[pruning], logger=False, enable_checkpointing=False)
    trainer.fit(module, data.train_dataloader())
    pruning.save(out, data.tokenizer)
    print(f"The compact model is in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the compact model; it must not exist yet")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    main(**vars(parser.parse_args()))
