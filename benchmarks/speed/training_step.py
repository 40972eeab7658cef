"""What masks cost: a training step with masks, penalty and optimizer, against a dense one.

BERT-base (random weights: time does not depend on them), hybrid masks half-way through their schedule, 8 rows of 128
tokens, AdamW, float32 and bfloat16 autocast. Dense and masked steps alternate; the median of the paired ratios counts.

    python benchmarks/speed/training_step.py [--layers 12] [--rounds 15] [--device cpu] [--precision float32]

The row lands in benchmarks/results/training_step/DEVICE-PRECISION-THREADS.json, for as many threads as OMP_NUM_THREADS
says; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.progress import track
from torch.utils.benchmark import timer
from transformers import BertConfig, BertForQuestionAnswering

from bplightning import Progress, PrunableLayout
from bplightning.measuring.measure import machine
from bplightning.strategies.hybrid import Hybrid

RESULTS = Path(__file__).resolve().parents[1] / "results" / "training_step"
BATCH, LENGTH, SEED = 8, 128, 0
HALF_WAY = Progress(step=500, total_steps=1000, warmup_steps=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the model")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of steps that are timed, after one that is not")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of the matrix products"
    )
    arguments = parser.parse_args()
    path = RESULTS / f"{arguments.device}-{arguments.precision}-{torch.get_num_threads()}.json"
    if path.exists():
        print(f"{path.name} is there already:\n{path.read_text()}")
        return

    torch.manual_seed(SEED)
    dense = BertForQuestionAnswering(BertConfig(num_hidden_layers=arguments.layers)).to(arguments.device).train()
    pruned = copy.deepcopy(dense)
    strategy = Hybrid()
    strategy.attach(PrunableLayout.of(pruned))
    strategy.to(arguments.device)
    tokens = torch.randint(30_000, (BATCH, LENGTH), device=arguments.device)
    answers = torch.randint(LENGTH, (BATCH,), device=arguments.device)
    dense_optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-5, fused=True)
    groups = strategy.parameter_groups(total_steps=HALF_WAY.total_steps)
    pruned_optimizer = torch.optim.AdamW([{"params": list(pruned.parameters())}, *groups], lr=1e-5, fused=True)

    def step(model: BertForQuestionAnswering, optimizer: torch.optim.Optimizer, strategy: Hybrid | None) -> None:
        if strategy is not None:
            strategy.advance(HALF_WAY)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            loss = model(input_ids=tokens, start_positions=answers, end_positions=answers).loss
        if strategy is not None:
            loss = loss + strategy.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def seconds(function: Callable[[], None]) -> float:
        start = timer()
        function()
        return timer() - start

    steps = {
        "dense": lambda: step(dense, dense_optimizer, None),
        "masked": lambda: step(pruned, pruned_optimizer, strategy),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in track(range(arguments.rounds + 1), description="pairs of steps"):
        order = list(steps) if round_number % 2 else list(reversed(steps))
        for name in order:
            times[name].append(seconds(steps[name]))
    ratios = [masked / plain for masked, plain in list(zip(times["masked"], times["dense"], strict=True))[1:]]
    low, _, high = quantiles(ratios, n=4)
    row = {
        "masked_over_dense": {"median": median(ratios), "quartiles": [low, high]},
        "seconds": {name: median(values[1:]) for name, values in times.items()},
        "model": f"BERT, {arguments.layers} layers of 768",
        "shape": f"{BATCH}x{LENGTH}",
        "precision": arguments.precision,
        "rounds": arguments.rounds,
        "seed": SEED,
        "machine": machine(arguments.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
