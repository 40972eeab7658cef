"""The smallest real task: point at the only token 5 of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_families import VOCABULARY, tiny
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import AutoModelForQuestionAnswering, BertTokenizer, PreTrainedModel

from bplightning.contracts.task import Task


class Accuracy(Metric):
    """Per cent of rows whose start is found."""

    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        """Count a batch."""
        self.right += (outputs.start_logits.argmax(-1) == batch["start_positions"]).sum()
        self.total += len(batch["start_positions"])

    def compute(self) -> dict[str, Tensor]:
        """Name to value."""
        return {"accuracy": 100 * self.right / self.total}


class TinyTask(Task):
    """Rows of 12 random tokens, one of which is 5."""

    monitor = "accuracy"

    def __init__(self, folder: Path, **config: object) -> None:
        super().__init__()
        self.config = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, **config}
        vocabulary = folder / "vocab.txt"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
        vocabulary.write_text("\n".join(words))
        self._tokenizer = BertTokenizer(str(vocabulary))

    @property
    def tokenizer(self) -> BertTokenizer:
        return self._tokenizer

    def build_model(self) -> PreTrainedModel:
        with torch.random.fork_rng():  # it seeds, and what comes after must not depend on that
            return tiny("bert", **self.config)

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        return AutoModelForQuestionAnswering.from_pretrained(folder)

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        return torch.cat([outputs.start_logits, outputs.end_logits], dim=-1)

    def build_metric(self) -> Accuracy:
        return Accuracy()

    def evaluation_settings(self, metric: Any) -> dict[str, Any]:
        return {"examples": int(metric.total)}

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(rows(96, seed=0), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(rows(20, seed=1), batch_size=8)


def rows(count: int, *, seed: int) -> list[dict[str, Tensor]]:
    """Examples as the model takes them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(6, VOCABULARY, (12,), generator=generator)
        position = torch.randint(12, (), generator=generator)
        ids[position] = 5
        made.append({"input_ids": ids, "start_positions": position, "end_positions": position})
    return made


def trainer(folder: Path, name: str = "tiny", **options: Any) -> Trainer:
    """A quiet one, of two epochs."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": CSVLogger(folder, name=name),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(settings | options))
