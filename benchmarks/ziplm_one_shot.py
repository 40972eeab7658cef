"""ZipLM without training: a fine-tuned classifier pruned in one go, beside the same sizes by magnitude.

    bplightning latency-table DENSE_FOLDER table.json
    python benchmarks/ziplm_one_shot.py --dense DENSE_FOLDER --table table.json --train a.jsonl --held-out b.jsonl

Prints a line of JSON for each model: what it keeps in each layer, its score on the held-out file, and the seconds that
pruning took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from bplightning import compact
from bplightning.finishing import evaluate
from bplightning.layout import PrunableLayout
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.ziplm import ZipLM
from bplightning.tasks.classification import Classification

EXAMPLES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="folder of the fine-tuned model")
    parser.add_argument("--table", required=True, help="its latency table")
    parser.add_argument("--train", required=True, help="sentences to calibrate with")
    parser.add_argument("--held-out", required=True, help="sentences to score with")
    parser.add_argument("--speedups", nargs="*", type=float, default=[1.5, 2.0], help="targets")
    parser.add_argument("--tries", type=int, default=50, help="search_tries")
    arguments = parser.parse_args()
    task = Classification(model=arguments.dense, train_file=arguments.train, validation_file=arguments.held_out)
    task.prepare_data()
    task.setup("fit")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)

    def note(model: Any, **values: Any) -> None:
        print(json.dumps(values | evaluate(trainer, task, model, prefix="compact")["metrics"]), flush=True)

    note(task.load_model(arguments.dense), method="dense")
    for speedup in arguments.speedups:
        model = task.load_model(arguments.dense).eval()
        strategy, layout = ZipLM([speedup], arguments.table, search_tries=arguments.tries), PrunableLayout.of(model)
        strategy.attach(layout)
        begun = time.perf_counter()
        strategy.calibrate(model, calibration(task), task.loss)
        seconds = round(time.perf_counter() - begun, 1)
        kept = [int(mask.kept.sum()) for mask in strategy.all_masks]
        strategy.harden(layout)
        note(compact(model), method="ziplm", speedup=speedup, tries=arguments.tries, seconds=seconds, kept=kept)
        note(compact(by_magnitude(task.load_model(arguments.dense), kept)), method="magnitude", speedup=speedup)


def calibration(task: Classification) -> list[dict[str, Tensor]]:
    """The first batches of the training set, in a seeded order."""
    torch.manual_seed(0)
    batches: list[dict[str, Tensor]] = []
    for batch in task.train_dataloader():
        batches.append(task.model_inputs(batch))
        if sum(len(each["input_ids"]) for each in batches) >= EXAMPLES:
            break
    return batches


def by_magnitude(model: Any, kept: Sequence[int]) -> Any:
    """The same numbers of heads and units in each layer, those with the largest weights."""
    layout = PrunableLayout.of(model)
    strategy = Magnitude(granularity={"attention": "head", "feed_forward": "unit"})
    strategy.attach(layout)
    for mask, count in zip(strategy.all_masks, kept, strict=True):
        grid = torch.zeros_like(mask.kept)
        grid[strategy.worth(mask).flatten().topk(count).indices] = True
        mask.set_grid(grid)
    strategy.harden(layout)
    return model.eval()


if __name__ == "__main__":
    main()
