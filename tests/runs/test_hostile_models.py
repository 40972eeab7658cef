"""A stranger's folder of a model runs no code in any verb, asks nothing, and is refused in one line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hostile_folders import CANARY, MODULE, edited, model_that, write_module
from tiny_families import tiny
from tiny_task import TinyTask

from bplightning.cli import main
from bplightning.errors import UserError
from bplightning.runs.predicting import predict

VERBS = {
    "predict": ["predict", "FOLDER", "--input", "records.jsonl"],
    "export": ["export", "FOLDER", "out"],
    "benchmark": ["benchmark", "FOLDER"],
    "latency-table": ["latency-table", "FOLDER", "table.json"],
    "plan": ["plan", "--task.model", "FOLDER"],
    "validate": ["validate", "--task.model", "FOLDER", "--ckpt_path", "FOLDER", "--trainer.accelerator", "cpu"],
    "fit from a baseline": ["plan", "--task.model", "FOLDER", "--start", "baseline", "--baseline", "FOLDER"],
}
RECORD = {"question": "w1 w2?", "context": "w3 w4 w5"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny("bert", num_hidden_layers=1).save_pretrained(folder)
    TinyTask(folder).tokenizer.save_pretrained(folder)
    (folder / "task.json").write_text(
        json.dumps({"version": 1, "task": "qa", "settings": {"max_length": 32, "stride": 4}})
    )
    return folder


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    here.mkdir()
    write_module(here)
    (here / "records.jsonl").write_text(json.dumps(RECORD) + "\n")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setenv(CANARY, str(tmp_path / "canary"))
    return tmp_path / "canary"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["code of its own", "a pickle for weights", "an adapter", "a kernel of the hub"])
def test_no_verb_runs_code_of_a_folder(
    saved: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str], kind: str, verb: str
) -> None:
    folder = model_that(kind, saved, tmp_path / "model")
    with pytest.raises(SystemExit) as e:
        main([str(folder) if word == "FOLDER" else word for word in VERBS[verb]])
    said = capsys.readouterr().err
    assert e.value.code == 2, said
    assert said.startswith("bplightning: error: "), said
    assert len(said.splitlines()) == 1, said
    assert "cannot be loaded: " in said
    assert not canary.exists()
    assert MODULE not in sys.modules
    assert sys.stdin.read(1) == "y"  # nobody asked


def test_code_for_a_known_type_is_left_alone(saved: Path, tmp_path: Path, canary: Path) -> None:
    folder = model_that("code of its own for a known type", saved, tmp_path / "model")
    edited(folder, "tokenizer_config.json", auto_map={}, tokenizer_class="BertTokenizer")
    assert len(predict(folder, RECORD, accelerator="cpu")) == 1
    assert not canary.exists()


def test_random_weights_do_not_answer(saved: Path, tmp_path: Path) -> None:
    folder = model_that("an adapter", saved, tmp_path / "model")
    (folder / "adapter_config.json").unlink()
    tiny("bert", num_hidden_layers=1).bert.save_pretrained(folder)  # without a head
    with pytest.raises(UserError, match=r"its weights lack 'qa_outputs\.\w+' and 1 more, of its head"):
        predict(folder, RECORD, accelerator="cpu")


def test_a_tokenizer_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = model_that("an adapter", saved, tmp_path / "model")
    (folder / "adapter_config.json").unlink()
    tiny("bert", num_hidden_layers=1, vocab_size=40).save_pretrained(folder)
    with pytest.raises(UserError, match=r"[Tt]okenizer .* embeddings for 40|embeddings for 40 tokens"):
        predict(folder, RECORD, accelerator="cpu")


def test_what_a_file_holds_moves_no_cursor(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_that("an adapter", saved, tmp_path / "\x1b[31mred")
    with pytest.raises(SystemExit):
        main(["predict", str(folder), "--input", "records.jsonl", "--task", "\x9b2Jqa"])
    said = capsys.readouterr().err
    assert said.strip().isprintable()
    assert "\\x1b[31mred" in said or "\\x9b2J" in said
