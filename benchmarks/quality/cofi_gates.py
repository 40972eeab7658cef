"""CoFi's gates of whole sub-layers: as many as are expected stay open, or each by its own chance, as published.

The embedded classification task: a dense model is fine-tuned, then pruned by CoFi with each rule, from the same start
and with the same random numbers. Both land on the same size; they differ in which sub-layers are skipped for it.

    python benchmarks/quality/cofi_gates.py

Rows land in benchmarks/results/cofi_gates.json. Two minutes on a free core.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from transformers import PreTrainedModel

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import Target
from bplightning.io.provenance import now
from bplightning.measuring.measure import machine
from bplightning.stages.finishing import evaluate
from bplightning.strategies.cofi import gated_size
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.cofi.gates import kept_in_evaluation
from bplightning.strategies.l0 import chance_open
from bplightning.tasks.classification import Classification
from bplightning.training.module import PruningModule

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cofi_gates.json"
DENSITIES, SEEDS = (0.4, 0.25), (0, 1)


def each_alone(scores: Tensor) -> Tensor:
    """The published rule."""
    return chance_open(scores.detach()) > 0.5


RULES: dict[str, Callable[[Tensor], Tensor]] = {"as many as expected": kept_in_evaluation, "each alone": each_alone}


def main() -> None:
    torch.set_num_threads(1)
    dense = trained(PruningStrategy(), None, seed=0)
    rows = []
    for density in DENSITIES:
        for seed in SEEDS:
            for name, rule in RULES.items():
                gated_size.sublayers_open = rule  # type: ignore[assignment]
                strategy = CoFi(Target(density=density), prune_hidden=False)
                module = trained(strategy, dense.model, seed=seed)
                rows.append({"rule": name, "density": density, "seed": seed, **found(module, strategy)})
                print(rows[-1], flush=True)
    RESULTS.write_text(
        json.dumps({"rows": rows, "date": now(), "machine": machine(torch.device("cpu"))}, indent=1) + "\n"
    )


def trained(strategy: PruningStrategy, start: PreTrainedModel | None, *, seed: int) -> PruningModule:
    """One epoch of 188 steps on the embedded notes."""
    seed_everything(seed, verbose=False)
    module = PruningModule(Classification(batch_size=32, max_length=64), strategy, learning_rate=5e-4)
    if start is not None:
        module.model = copy.deepcopy(start)
    trainer().fit(module, datamodule=module.task)
    return module


def found(module: PruningModule, strategy: CoFi) -> dict[str, Any]:
    """Accuracy and density as evaluation has the gates, and how many sub-layers are shut."""
    evaluated = evaluate(trainer(), module.task, module.model, prefix="masked", strategy=strategy)["metrics"]
    shut = [name for name, mask in strategy.masks.items() if not mask.kept.any()]  # type: ignore[operator, union-attr]
    return {"accuracy": evaluated["accuracy"], "kept": float(strategy.density()["total"]), "shut": shut}


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


if __name__ == "__main__":
    main()
