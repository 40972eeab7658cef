"""Classification from `fit` to `predict`, as a user types it: the best checkpoint, the compact folder, its answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_texts import NAMES, NUMBERS, SEVERAL, TEXTS, rows, write

from bplightning.cli import main

pytestmark = pytest.mark.slow

OPTIONS = [
    *("--task", "classification", "--task.batch_size", "2", "--task.max_length", "32", "--task.cache_dir", "cache"),
    *("--strategy", "movement", "--strategy.target.density", "0.6", "--strategy.window.initial_warmup", "0"),
    *("--strategy.granularity", "{attention: 4x4, feed_forward: unit}", "--strategy.window.final_warmup", "1"),
    *("--model.learning_rate", "1e-2", "--model.warmup", "3", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "6", "--trainer.enable_progress_bar", "false"),
]
KINDS = {
    "single": (rows(NAMES), "accuracy"),
    "pair": (rows(NAMES, text_pair=[*TEXTS[1:], TEXTS[0]]), "accuracy"),
    "multi": (rows(SEVERAL), "f1"),
    "regression": (rows(NUMBERS), "pearson"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    files = {name: write(folder / f"{name}.jsonl", records) for name in ("train", "validation")}
    return [f"--task.{name}_file={file}" for name, file in files.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_from_fit_to_predict(kind: str, here: Path, bert_folder: str) -> None:
    records, monitor = KINDS[kind]
    main(["fit", f"--task.model={bert_folder}", *data(here, records), *OPTIONS])
    run = here / "runs" / "classification-movement" / "version_0"
    logged = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    validated = [row for row in logged if row[f"val_{monitor}"] and float(row["val_target_reached"])]
    best = max(float(row[f"val_{monitor}"]) for row in validated)
    first = next(int(row["step"]) for row in validated if float(row[f"val_{monitor}"]) == best)
    assert [path.name for path in (run / "checkpoints").glob("best-*")] == [f"best-step={first + 1}.ckpt"]
    report = json.loads((run / "report.json").read_text())
    assert monitor in report["metrics"]["compact"]
    assert report["metrics"]["masked"] == pytest.approx(report["metrics"]["compact"], rel=1e-2)

    questions = [{name: record[name] for name in record if name != "label"} for record in records]
    write(here / "questions.jsonl", [question | {"id": f"n{row}"} for row, question in enumerate(questions)])
    main(["predict", str(run / "compact"), "--input=questions.jsonl", "--output=answers.jsonl"])
    answers = [json.loads(line) for line in (here / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [f"n{row}" for row in range(6)]
    for answer in answers:
        if kind == "regression":
            assert isinstance(answer["value"], float)
        elif kind == "multi":
            assert list(answer["scores"]) == ["far", "wet"]
            assert answer["labels"] == [name for name, score in answer["scores"].items() if score > 0.5]
        else:
            assert answer["label"] in ("long", "short")
            assert 0.5 <= answer["score"] <= 1
    if kind != "regression":
        assert sum(of["examples"] for of in report["classes"]["scores"]) >= 6
    assert len(report["samples"]) == 5
    assert report["samples"][0]["example"]["text"] == records[0]["text"]
    if kind in ("single", "pair"):  # what is answered is what was measured
        right = sum(answer["label"] == record["label"] for answer, record in zip(answers, records, strict=True))
        assert report["metrics"]["compact"]["accuracy"] == pytest.approx(100 * right / 6, abs=1e-3)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line


def test_what_is_wrong_is_one_line(here: Path, bert_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", f"--task.model={bert_folder}", *OPTIONS]
    files = data(here, rows([*NAMES[:5], None]))
    assert "example 6 of" in refused(capsys, *fit, *files)
    glue = ["--task.dataset=nyu-mll/glue", "--task.dataset_config=ax"]
    assert "has no training data: train mnli" in refused(capsys, *fit, *glue)
    sentences = [{"sentence": row["text"], "label": row["label"]} for row in rows(NAMES)]
    message = refused(capsys, *fit, *data(here, sentences))
    assert "--task.columns.text=sentence" in message
    advice = ["--task.columns.text=sentence", "--trainer.fast_dev_run=true", "--model.warmup=0"]
    main([*fit, *data(here, sentences), *advice])


def test_a_baseline_of_other_labels_is_refused_before_training(
    here: Path, bert_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", f"--task.model={bert_folder}", "--task=classification", "--task.cache_dir=cache", "--strategy=dense"]
    fit += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    main([*fit, *data(here, rows(["far", "near"] * 3))])
    dense = str(here / "runs" / "classification-dense" / "version_0" / "compact")
    for start in ("pretrained", "baseline"):
        line = refused(capsys, *fit, *data(here, rows(NAMES)), f"--baseline={dense}", f"--start={start}")
        assert "is for other labels" in line
        assert "'far', 'near'" in line
        assert "'long', 'short'" in line
    assert not (here / "runs" / "classification-dense" / "version_1" / "checkpoints").exists()
