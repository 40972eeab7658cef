"""The whole path as a user types it: fit on the embedded default, compact, and reload in a fresh process."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from programs import said_by

from bplightning.tasks.embedded.qa import generate

ROOT = Path(__file__).parents[2]
QUICK = [
    "--trainer.max_steps=12",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--strategy.score_learning_rate=0.5",  # in a dozen steps scores must travel fast
]


def bplightning(*words: str, cwd: Path) -> None:
    """The program, of which `folder` has shown that it starts."""
    said_by(ROOT / "cli.py", *words, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `fit --strategy hybrid` was run, with no other choice than to be quick."""
    where = tmp_path_factory.mktemp("user")
    command = [sys.executable, str(ROOT / "cli.py"), "fit", "--strategy", "hybrid", *QUICK]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return where


def test_the_run_holds_what_readme_says(folder: Path) -> None:
    version = folder / "runs" / "qa-hybrid" / "version_0"
    report = json.loads((version / "report.json").read_text())
    assert report["task"] == "qa"
    assert report["strategy"] == "hybrid"
    assert set(report["metrics"]) == {"dense", "masked", "compact"}
    assert set(report["metrics"]["dense"]) == {"exact_match", "f1"}  # the recipe trains a baseline
    assert report["metrics"]["masked"] == report["metrics"]["compact"]
    assert report["bytes_on_disk"]["compact"] < report["bytes_on_disk"]["dense"]
    assert {path.name for path in (version / "compact").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert list((version / "checkpoints").glob("*.ckpt"))
    assert yaml.safe_load((version / "config.yaml").read_text())["trainer"]["max_steps"] == 12
    rows = list(csv.DictReader((version / "metrics.csv").read_text().splitlines()))
    assert {"task_loss", "penalty", "score_threshold", "density/attention", "density/feed_forward"} <= set(rows[0])


def test_the_compact_folder_loads_in_a_fresh_process(folder: Path) -> None:
    code = """
import json, torch
import bplightning
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
model = AutoModelForQuestionAnswering.from_pretrained("runs/qa-hybrid/version_0/compact")
tokenizer = AutoTokenizer.from_pretrained("runs/qa-hybrid/version_0/compact")
inputs = tokenizer("Who lives in Dinmouth?", "Sirina Senman lives in Dinmouth.", return_tensors="pt")
assert torch.isfinite(model(**inputs).start_logits).all()
print(json.dumps(sum(p.numel() for p in model.parameters())))
"""
    report = json.loads((folder / "runs" / "qa-hybrid" / "version_0" / "report.json").read_text())
    assert json.loads(said_by(code, cwd=folder).splitlines()[-1]) == report["parameters"]["compact"]["all"]


def test_compact_writes_the_same_model_from_the_checkpoint(folder: Path) -> None:
    bplightning("compact", "runs/qa-hybrid/version_0", "again", cwd=folder)
    first = folder / "runs" / "qa-hybrid" / "version_0" / "compact"
    assert (folder / "again" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (folder / "again" / "compaction_plan.json").read_text() == (first / "compaction_plan.json").read_text()


def test_a_smaller_vocabulary_and_half_precision_are_in_the_report_and_answer_alike(folder: Path) -> None:
    rows = generate("validation")
    texts = [{"question": row["question"], "context": row["context"]} for row in rows[:40]]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    options = "--vocabulary=corpus.jsonl", "--dtype=float16"
    bplightning("compact", "runs/qa-hybrid/version_0", "small", *options, cwd=folder)
    report = json.loads((folder / "small" / "report.json").read_text())
    before = json.loads((folder / "runs" / "qa-hybrid" / "version_0" / "report.json").read_text())
    assert report["dtype"] == "float16"
    assert report["vocabulary"]["kept"] < report["vocabulary"]["total"] == before["vocabulary"]["kept"]
    assert report["metrics"]["dense"] is not None  # the baseline of the run
    assert report["bytes_on_disk"]["compact"] < 0.55 * before["bytes_on_disk"]["compact"]
    answers = []
    for number, model in enumerate(("runs/qa-hybrid/version_0", "small")):
        output = folder / f"{number}.jsonl"
        bplightning("predict", model, "--input=corpus.jsonl", f"--output={output}", cwd=folder)
        answers.append([json.loads(line) for line in output.read_text().splitlines()])
    full, small = answers
    assert len(full) == 40
    # A smaller vocabulary changes nothing on its corpus, half precision little.
    assert sum(one["answer"] == other["answer"] for one, other in zip(full, small, strict=True)) >= 38


def test_the_saved_configuration_repeats_the_run(folder: Path) -> None:
    config = folder / "runs" / "qa-hybrid" / "version_0" / "config.yaml"
    bplightning("fit", "--config", str(config), cwd=folder)
    first, second = (folder / "runs" / "qa-hybrid" / f"version_{n}" / "compact" / "model.safetensors" for n in (0, 1))
    assert first.read_bytes() == second.read_bytes()
