"""Answers of a saved model, from Python and from the command line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pointing_task import PointingTask, expected, make_run, records
from tiny_families import tiny
from transformers import PreTrainedModel

import bplightning
from bplightning.cli import main
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.runs import predicting
from bplightning.runs.predicting import Predictor, predict, predict_iter

ROOT = Path(__file__).parents[2]
TASK = "pointing_task.PointingTask"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """Where a run lies, and the masked model that it stands for."""
    folder = tmp_path_factory.mktemp("made")
    return folder, make_run(folder)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, with its task beside it."""
    folder = tmp_path_factory.mktemp("dense")
    model().save_pretrained(folder)
    save_task(PointingTask(str(folder), offset=10), folder)
    return folder


def model() -> PreTrainedModel:
    """With much dropout, which must not be in the answers."""
    return tiny("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)


@pytest.fixture
def command(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Any:
    """``predict`` of the dense model in a folder of its own: exit status, output and messages."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: bytes | None = None, model: str | Path = dense) -> tuple[int, bytes, str]:
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = 0
        try:
            main(["predict", str(model), "--task", TASK, *args])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# -- what is answered ----------------------------------------------------------------------------------------------


def test_answers_are_the_models_in_the_records_order(dense: Path) -> None:
    rows = records(30)
    answers = bplightning.predict(dense, iter(rows), task=TASK, accelerator="cpu")
    assert answers == expected(model(), rows, offset=10)  # the recorded setting
    assert len({answer["place"] for answer in answers}) > 3


def test_a_compact_folder_a_run_and_a_checkpoint(
    made: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, masked = made
    rows = records(20)
    right = expected(masked, rows, offset=100)
    run = folder / "run"
    assert predict(run, rows, accelerator="cpu") == right
    assert predict(run, rows[0], accelerator="cpu") == right[:1]
    monkeypatch.chdir(run / "checkpoints")
    assert predict("epoch=0-step=12.ckpt", rows, accelerator="cpu") == right

    # A run stands for its compact model where it has one.
    (tmp_path / "config.yaml").touch()
    small: Any = compact(masked)
    save_compact(small, tmp_path / "compact")
    save_task(PointingTask(str(tmp_path), offset=7), tmp_path / "compact")
    right = expected(masked, rows, offset=7)
    assert predict(tmp_path / "compact", rows, task=TASK, accelerator="cpu") == right
    assert predict(tmp_path, rows, task=TASK, accelerator="cpu") == right


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_works_on_the_processor(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny("bert", dtype=dtype).save_pretrained(tmp_path)
    rows = records(10)
    predictor = Predictor(tmp_path, task=TASK, accelerator="cpu")
    assert next(predictor._module.parameters()).dtype == dtype
    assert predictor(rows) == expected(tiny("bert", dtype=dtype), rows)


def test_batch_size_is_the_tasks(dense: Path) -> None:
    for size, rows_of_batches in ((None, [8, 2]), (4, [4, 4, 2])):
        predictor = Predictor(dense, task=TASK, batch_size=size, accelerator="cpu")
        predictor(records(10))
        task = predictor.task
        assert isinstance(task, PointingTask)
        assert task.rows_of_batches == rows_of_batches


def test_a_model_is_read_once_and_answers_often(dense: Path) -> None:
    predictor = Predictor(dense, task=TASK, accelerator="cpu")
    rows = records(6)
    assert predictor(rows[:2]) + predictor([]) + predictor(rows[2:]) == expected(model(), rows, offset=10)
    assert predictor(rows[0]) == [*predict_iter(dense, rows[0], task=TASK, accelerator="cpu")] == predictor(rows[:1])


def test_records_are_taken_as_they_are_needed(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 4)
    rows, taken = records(10), []

    def source() -> Iterator[dict[str, Any]]:
        for row in rows:
            taken.append(row)
            yield row

    answers = predict_iter(dense, source(), task=TASK, accelerator="cpu")
    first = next(answers)
    assert len(taken) == 4
    assert [first, *answers] == expected(model(), rows, offset=10)


def test_nothing_of_the_process_is_changed(
    made: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: Any
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    handler, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    predictor = Predictor(made[0] / "run", accelerator="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert os.environ["PL_GLOBAL_SEED"] == "17"
    predictor(records(2))
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr() == ("tasks may print\n", "")
    assert not caplog.records


def test_ctrl_c_stays_ctrl_c(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning makes it `SystemExit`, and has the process ignore the next one."""

    def interrupted(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    predictor = Predictor(dense, task=TASK, accelerator="cpu")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(PointingTask, "predict_batch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                predictor(records(2))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(predictor(records(2))) == 2


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "nowhere"}, r"the model 'nowhere' does not exist: give a model's folder \(with config\.json\)"),
        ({"model": "/"}, r"the model '/' exists, but is not a model folder"),
        ({"model": __file__}, r"the model '.*test_predicting\.py' exists, but is not a model folder"),
        ({"task": "qaa"}, "no task is called 'qaa'; there are: "),
        ({"task": None}, r"names the task 'pointing_task\.PointingTask', which is not among those installed"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"accelerator": "abacus"}, "accelerator 'abacus' is not available .*: try 'auto'"),
        ({"accelerator": "tpu"}, "accelerator 'tpu' is not available .*torch_xla.*: try 'auto'"),
        ({"records": [{"tokens": [5]}, 3]}, "record 1 is a int; it must be a dictionary"),
        ({"records": ["tokens"]}, "record 0 is a str; it must be a dictionary"),
        ({"records": [*records(9), {"tokens": []}, *records(7)]}, "record 9 has no tokens"),
    ],
)
def test_mistakes_are_said(dense: Path, arguments: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {"model": dense, "records": records(2), "task": TASK, "accelerator": "cpu"}
    with pytest.raises(UserError, match=said):
        predict(**(usual | arguments))


def test_the_record_that_is_refused_is_found(dense: Path) -> None:
    predictor = Predictor(dense, task=TASK, accelerator="cpu")
    for place in range(7):
        rows = records(7)
        rows[place] = {"tokens": []}
        with pytest.raises(UserError, match=rf"^record {place} has no tokens$"):
            predictor(rows)


def test_a_damaged_model_is_refused(dense: Path, tmp_path: Path) -> None:
    for file in dense.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"the model .* cannot be loaded: its weights are truncated or damaged"):
        Predictor(tmp_path, task=TASK, accelerator="cpu")


def test_a_run_names_its_own_task(made: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(UserError, match=r"task is 'qa', but the task of '.*run' is set by its run's config\.yaml"):
        predict(made[0] / "run", [], task="qa")


# -- the command ---------------------------------------------------------------------------------------------------


def test_lines_in_lines_out_and_nothing_else(command: Any) -> None:
    rows = records(5)
    status, out, err = command("--accelerator", "cpu", stdin=lines(rows))
    assert (status, out) == (0, lines(expected(model(), rows, offset=10)))
    assert err == "tasks may print\n"


def test_from_a_file_to_a_file(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 4)
    rows = records(10)
    (tmp_path / "in.json").write_text(json.dumps(rows))
    status, out, err = command("--input", "in.json", "--output", "out.jsonl", "--batch_size", "3")
    assert (status, out) == (0, b"")
    assert (tmp_path / "out.jsonl").read_bytes() == lines(expected(model(), rows, offset=10))
    assert [line.split(",")[0] for line in err.splitlines() if "answered" in line] == [
        f"{count} records answered" for count in (4, 8, 10)
    ]
    assert command("--input", "in.json", "--output", "out.jsonl")[0] == 2
    assert command("--input", "in.json", "--output", "out.jsonl", "--overwrite", "true")[0] == 0


def test_a_bad_line_ends_it_with_nothing_half_written(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 4)
    (tmp_path / "in.jsonl").write_bytes(lines(records(6)) + b"\n" + lines([{"tokens": []}]) + lines(records(1)))
    status, _, err = command("--input", "in.jsonl", "--output", "out.jsonl")
    assert status == 2
    assert err.splitlines()[-1] == "bplightning: error: line 8 of 'in.jsonl' has no tokens"
    assert [item.name for item in tmp_path.iterdir()] == ["in.jsonl"]


def test_bad_input_is_said_before_a_model_is_read(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "Predictor", None)
    for stdin, said in ((b"", "standard input holds no records"), (b"{", "line 1 of standard input is not valid JSON")):
        status, out, err = command(stdin=stdin)
        assert (status, out, err.count("\n")) == (2, b"", 1)
        assert err.startswith(f"bplightning: error: {said}")


def test_a_reader_that_has_enough_ends_it_quietly(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(records(6000)))  # more answers than a pipe holds
    words = [sys.executable, str(ROOT / "cli.py"), "predict", str(dense), "--task", TASK, "--input", "in.jsonl"]
    words += ["--batch_size", "500", "--accelerator", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "support"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline()) == expected(model(), records(6000)[:1], offset=10)[0]
        process.stdout.close()
        messages = process.stderr.read().decode()
    assert process.returncode == 141
    assert set(messages.splitlines()) == {"tasks may print"}
