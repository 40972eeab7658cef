"""A task that predicts: the place of each row's token 5, in rows of any length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from tiny_task import TinyTask
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule


class PointingTask(TinyTask):
    """Records are ``{"tokens": [...]}``, answers ``{"place": ...}``.

    Args:
        model: Folder of the model.
        offset: Added to every place.
        eval_batch_size: Rows of a batch.
    """

    saved_settings = ("offset",)

    def __init__(self, model: str, offset: int = 0, eval_batch_size: int = 8) -> None:
        if offset < 0:
            raise UserError(f"offset is {offset}; it must be 0 or more")
        super().__init__(Path(model))
        self.model = model
        self.offset = offset
        self.eval_batch_size = eval_batch_size
        self.rows_of_batches: list[int] = []

    def build_model(self) -> PreTrainedModel:
        torch.rand(1)  # as a new head draws
        return super().build_model()

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        for place, record in zip(places, records, strict=True):
            if not record.get("tokens"):
                raise UserError(f"{place} has no tokens")
        self.records = [torch.tensor(record["tokens"]) for record in records]

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The longest first, so that the order is not that of the records."""
        order = sorted(range(len(self.records)), key=lambda index: -len(self.records[index]))
        return DataLoader(order, batch_size=self.eval_batch_size, collate_fn=self._collate)  # type: ignore[arg-type]

    def predict_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert not model.training
        assert torch.is_inference_mode_enabled()
        self.rows_of_batches.append(len(batch["index"]))
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).start_logits
        places = logits.masked_fill(batch["attention_mask"] == 0, -torch.inf).argmax(-1)
        return {"index": batch["index"], "place": places + self.offset}

    def predictions(self, batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
        print("tasks may print")
        places = {int(i): int(p) for batch in batches for i, p in zip(batch["index"], batch["place"], strict=True)}
        return [{"place": places[index]} for index in range(len(self.records))]

    def _collate(self, indices: list[int]) -> dict[str, Tensor]:
        rows = [self.records[index] for index in indices]
        ids = pad_sequence(rows, batch_first=True, padding_value=1)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"index": torch.tensor(indices), "input_ids": ids, "attention_mask": mask}


def records(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of 3 to 12 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
    return [{"tokens": torch.randint(6, 60, (length,), generator=generator).tolist()} for length in lengths]


@torch.no_grad()
def expected(model: PreTrainedModel, rows: Sequence[dict[str, Any]], *, offset: int = 0) -> list[dict[str, Any]]:
    """The answers, one row at a time."""
    model.eval()
    places = [model(input_ids=torch.tensor([row["tokens"]])).start_logits.argmax(-1).item() for row in rows]
    return [{"place": int(place) + offset} for place in places]


def make_run(folder: Path) -> PreTrainedModel:
    """A run's folder with a configuration and one checkpoint, half pruned; returns the model that it stands for."""
    run, start = folder / "run", folder / "start"
    (run / "checkpoints").mkdir(parents=True)
    start.mkdir()
    plugins = {
        "task": {"class_path": "pointing_task.PointingTask", "init_args": {"model": str(start), "offset": 100}},
        "strategy": {
            "class_path": "bplightning.strategies.hybrid.Hybrid",
            "init_args": {"window": {"final_warmup": 2}},
        },
    }
    settings = {"model": {"learning_rate": 1e-3}, "start": "pretrained", "baseline": "none", "seed_everything": 3}
    trainer = {"max_steps": 12, "option_of_another_version": 1}
    (run / "config.yaml").write_text(yaml.safe_dump(plugins | settings | {"trainer": trainer}))
    module = PruningModule(
        PointingTask(str(start), offset=100), Hybrid(window=PruningWindow(final_warmup=2)), learning_rate=1e-3
    )
    training = Trainer(accelerator="cpu", max_steps=12, logger=False, enable_checkpointing=False, limit_val_batches=0)
    training.fit(module, datamodule=module.task)
    training.save_checkpoint(run / "checkpoints" / "epoch=0-step=12.ckpt")
    return module.harden().eval()
