"""Calibrates moe-pruner in one of two processes, with half the batches, and saves its state.

Run as ``python calibrate_on_ranks.py RANK FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from tiny_families import padded_inputs, tiny

from bplightning.layout import PrunableLayout
from bplightning.strategies.moe_pruner import MoEPruner


def calibrated(seeds: Iterable[int]) -> dict[str, Tensor]:
    """The state of a strategy that drops an expert and half of the weights, by these batches."""
    model, strategy = tiny("mixtral", dtype=torch.float64), MoEPruner(experts=2)
    strategy.attach(PrunableLayout.of(model))
    batches = [padded_inputs("right", seed=seed) for seed in seeds]
    strategy.calibrate(model, batches, lambda outputs, batch: outputs.logits.sum())
    return strategy.state_dict()


def main(rank: int, folder: Path) -> None:
    """One process of the two."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(calibrated(range(rank, 4, 2)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
