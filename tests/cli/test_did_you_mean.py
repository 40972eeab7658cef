"""An unknown verb, option or plugin is answered with the one that was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from bplightning.cli import main


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("args", "end"),
    [
        (["fti"], "there are: fit, validate, .*; did you mean 'fit'? (see bplightning --help)"),
        (["latency_table", "x"], "; did you mean 'latency-table'? (see bplightning --help)"),
        (["benchmark", "x", "--batch_size", "8"], "--batch_size 8; did you mean --batch_sizes? (see bplightning ben"),
        (["compare", "--strategy", "l0"], "--strategy; did you mean --strategies? (see bplightning compare --help)"),
    ],
)
def test_verbs_and_their_options(capsys: pytest.CaptureFixture[str], args: list[str], end: str) -> None:
    message = refused(capsys, *args)
    assert all(part in message for part in end.split(".*"))


@pytest.mark.parametrize(
    ("args", "end"),
    [
        (["--strategy", "hybird"], "such as my_file.MyStrategy works too; did you mean 'hybrid'?"),
        (["--task", "q"], "such as my_file.MyTask works too; did you mean 'qa'?"),
        (["--task", "sum"], "; did you mean 'summarization'?"),
        (
            ["--strategy.regularisation", "3"],
            "is not accepted; did you mean --strategy.regularization? (see bplightnin",
        ),
        (["--task.modle", "x"], "is not accepted; did you mean --task.model? (see bplightning fit --help)"),
        (["--trainer.max_epoch", "3"], "; did you mean --trainer.max_epochs? (see bplightning fit --help)"),
        (["--distilation.teacher", "x"], "; did you mean --distillation.teacher?"),
        (["--max_epochs", "3"], "; did you mean --trainer.max_epochs?"),
        (["--baselin=train", "--quantise", "int8"], "; did you mean --baseline and --quantize?"),
        (["--config", "trainer.yaml"], "'trainer.max_epoch'; did you mean --trainer.max_epochs?"),
        (["--config", "strategy.yaml"], "is not accepted; did you mean --strategy.regularization?"),
        (["--strategy", "user_file.Mine", "--strategy.size.of_girds", "2"], "; did you mean --strategy.size.of_grids?"),
    ],
)
def test_options_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], end: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("trainer.yaml").write_text("trainer: {max_epoch: 3}")
    Path("strategy.yaml").write_text("strategy: {class_path: hybrid, init_args: {regularisation: 3}}")
    Path("user_file.py").write_text(
        "from dataclasses import dataclass\nfrom bplightning.contracts.strategy import PruningStrategy\n\n"
        "@dataclass(frozen=True)\nclass Size:\n    of_grids: int = 1\n\n"
        "class Mine(PruningStrategy):\n    def __init__(self, size: Size = Size()):\n        super().__init__()\n"
    )
    assert end in refused(capsys, "fit", *args)


def test_nothing_is_suggested_where_nothing_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--nope", "1"], ["--strategy.nope", "1"], ["--strategy", "nonsense"]):
        assert "did you mean" not in refused(capsys, "fit", *args)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_stage_2", "auto"])
def test_lightnings_strategies_are_the_trainers(capsys: pytest.CaptureFixture[str], name: str) -> None:
    message = refused(capsys, "fit", "--strategy", name)
    assert f"--strategy is '{name}', which is a strategy of Lightning for devices" in message
    assert f"give --trainer.strategy {name}, and --strategy a name such as hybrid" in message
