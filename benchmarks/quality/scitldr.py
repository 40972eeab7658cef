"""A small BART and a small T5 without pretraining on SciTLDR: dense, then hybrid from the dense one.

What counts is that the masked and the compact model agree and that generation gets faster, timed with key/value cache.
The ROUGE scores say nothing about quality: without pretraining nobody learns to summarize from 1,992 abstracts.

Rows land in benchmarks/results/scitldr/ROW.json, the report of a run each; a row that is there is not run again.

    python benchmarks/quality/scitldr.py --data SCITLDR_FOLDER

`SCITLDR_FOLDER` holds train.jsonl and validation.jsonl, lines of "document" and "summaries". A row takes a few
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, BertTokenizer, PreTrainedConfig, T5Config

from benchmarks.quality.squad_minilm import without_paths
from bplightning import predict

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scitldr"
LAYERS, HIDDEN, HEADS, UNITS = 2, 256, 8, 1024
VOCABULARY = 4000
"""Pieces of words of the training set: of a usual 30,000, choosing among them would take most of the time."""

COMPARED = 200
"""Documents whose summaries by the masked and by the compact model are compared."""

SETTINGS = {
    "--seed_everything": "0",
    "--trainer.max_epochs": "2",
    "--task": "summarization",
    "--task.columns": "{text: document, summary: summaries}",
    "--task.batch_size": "16",
    "--task.max_length": "128",
    "--task.max_summary_length": "32",
    "--task.eval_examples": "100",
    "--task.generation.no_repeat_ngram_size": "3",
    "--model.learning_rate": "1e-3",
}
ROWS = {
    f"{family}-{strategy}": options
    for family in ("bart", "t5")
    for strategy, options in (
        ("dense", {"--strategy": "dense"}),
        ("hybrid-2", {"--strategy": "hybrid", "--strategy.regularization": "2"}),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of SciTLDR")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders go")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for row in arguments.rows:
        if (RESULTS / f"{row}.json").exists():
            print(f"{row}: already there", flush=True)
            continue
        family = row.partition("-")[0]
        dense = arguments.runs / f"scitldr-{family}-dense"
        first = row.endswith("-dense")
        start = dense
        if first:
            start = save_random(family, arguments.data / "train.jsonl", arguments.runs / f"scitldr-{family}-start")
        options = (
            SETTINGS
            | ROWS[row]
            | {
                "--task.model": str(start),
                "--task.train_file": str(arguments.data / "train.jsonl"),
                "--task.validation_file": str(arguments.data / "validation.jsonl"),
                "--trainer.default_root_dir": str(arguments.runs),
                "--baseline": "none" if first else str(dense),
            }
        )
        command = [sys.executable, str(ROOT / "cli.py"), "fit", *(f"{key}={value}" for key, value in options.items())]
        before = set(arguments.runs.glob("runs/*/*/report.json"))
        subprocess.run(command, check=True)
        (report,) = set(arguments.runs.glob("runs/*/*/report.json")) - before
        if first:
            dense.symlink_to((report.parent / "compact").resolve())
        found = without_paths(json.loads(report.read_text()))
        if not first:
            found["same_summaries"] = same_summaries(report.parent, arguments.data / "validation.jsonl")
        (RESULTS / f"{row}.json").write_text(json.dumps(found, indent=1) + "\n")


def save_random(family: str, training: Path, folder: Path) -> Path:
    """A model with seeded random weights, and a tokenizer for its training set."""
    records = [json.loads(line) for line in training.read_text(encoding="utf-8").splitlines()]
    texts = (text for record in records for text in (record["document"], *record["summaries"]))
    reader = BertTokenizer().train_new_from_iterator(texts, VOCABULARY)
    tokens = {
        "vocab_size": len(reader),
        "pad_token_id": reader.pad_token_id,
        "bos_token_id": reader.cls_token_id,
        "eos_token_id": reader.sep_token_id,
        "decoder_start_token_id": reader.cls_token_id,
    }
    config: PreTrainedConfig
    if family == "t5":
        config = T5Config(
            d_model=HIDDEN, d_kv=HIDDEN // HEADS, d_ff=UNITS, num_layers=LAYERS, num_heads=HEADS, **tokens
        )
    else:
        sizes = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": UNITS}
        stacks = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in sizes.items()}
        config = BartConfig(d_model=HIDDEN, max_position_embeddings=256, forced_eos_token_id=None, **stacks, **tokens)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def same_summaries(run: Path, file: Path) -> dict[str, int]:
    """How many documents the masked model, read from the last checkpoint, and the compact one summarize alike."""
    lines = file.read_text(encoding="utf-8").splitlines()[:COMPARED]
    records = [{"text": json.loads(line)["document"]} for line in lines]
    masked = predict(run / "checkpoints" / "last.ckpt", records)
    compact = predict(run / "compact", records)
    return {"same": sum(a == b for a, b in zip(masked, compact, strict=True)), "documents": len(records)}


if __name__ == "__main__":
    main()
