"""The command line: names of plugins, configuration files, recipes, the run's folder, errors, help."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import bplightning
from bplightning.cli import main
from bplightning.cli import plan as plan_cli
from bplightning.cli.verbs import VERBS, Verb
from bplightning.runs import compact_run as compacting
from bplightning.runs import predicting
from bplightning.stages import pipeline

ROOT = Path(__file__).parents[2]
SOFT = "bplightning.strategies.soft_movement.SoftMovement"
HYBRID = "bplightning.strategies.hybrid.Hybrid"
USER_FILE = '''
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering

from bplightning.errors import UserError
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task


class Loss(MeanMetric):
    def update(self, outputs, batch):
        super().update(outputs.loss)

    def compute(self):
        return {"score": super().compute()}


class TinyTask(Task):
    """A task of a user.

    Args:
        model: Folder.
        batch_size: Rows of a batch.
    """

    monitor = "score"
    embedded_recipe = Path(__file__).with_name("recipe.yaml")

    def __init__(self, model: str | None = None, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    tokenizer = None

    def build_model(self):
        return BertForQuestionAnswering(
            BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        )

    def load_model(self, folder):
        return AutoModelForQuestionAnswering.from_pretrained(folder)

    def logits(self, outputs, batch):
        return torch.cat([outputs.start_logits, outputs.end_logits], -1)

    def build_metric(self):
        return Loss()

    def train_dataloader(self):
        row = {"input_ids": torch.arange(8), "start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
        return DataLoader([row] * 8, batch_size=self.batch_size)

    val_dataloader = train_dataloader


class MyStrategy(PruningStrategy):
    """A strategy of a user.

    Args:
        foo: Number of foos, 1 or more.
    """

    def __init__(self, foo: int = 1) -> None:
        super().__init__()
        if foo < 1:
            raise UserError(f"foo is {foo};\\nit must be 1 or more")
        self.foo = foo
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder but for a user's own file, and nothing of pytest's in the argument list."""
    (tmp_path / "user_file.py").write_text(USER_FILE)
    (tmp_path / "recipe.yaml").write_text(
        "trainer: {max_steps: 7}\nmodel: {learning_rate: 0.25}\n"
        "task: {class_path: user_file.TinyTask, init_args: {batch_size: 2}}\nbaseline: train\n"
    )
    monkeypatch.delitem(sys.modules, "user_file", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.startswith(str(tmp_path.parent))])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """What ``--print_config`` says to the given arguments."""

    def of(*args: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            main([*args, "--print_config"])
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        return yaml.safe_load(out)

    return of


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """The one line of error to the given arguments."""

    def of(*args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert err.startswith("bplightning: error: ")
        return err

    return of


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--strategy", "soft-movement"],
        ["--strategy=soft-movement"],
        ["--strategy", SOFT],
        ["--strategy.class_path", "soft-movement"],
        ["--strategy", "{class_path: soft-movement, init_args: {regularization: 20}}"],
    ],
)
def test_names_and_class_paths_are_alike_on_the_command_line(printed: Any, args: list[str]) -> None:
    assert printed("fit", "--task.model", "x", *args)["strategy"]["class_path"] == SOFT


@pytest.mark.parametrize("name", ["soft-movement", SOFT])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("section", [False, True])
def test_names_and_class_paths_are_alike_in_yaml(
    printed: Any, here: Path, name: str, long: bool, section: bool
) -> None:
    content: dict[str, Any] = {
        "strategy": {"class_path": name, "init_args": {"regularization": 3}} if long else name,
        "task": {"class_path": "qa", "init_args": {"model": "x"}},
        "trainer": {"strategy": "auto"},
    }
    config = write(here, {"fit": content} if section else content)
    settings = printed("--config", config, "fit") if section else printed("fit", "--config", config)
    assert settings["strategy"]["class_path"] == SOFT
    assert settings["strategy"]["init_args"]["regularization"] == (3 if long else None)
    assert settings["task"]["init_args"]["model"] == "x"
    assert settings["trainer"]["strategy"] == "auto"


def test_default_is_hybrid_for_qa(printed: Any) -> None:
    settings = printed("fit", "--task.model", "x", "--strategy.regularization", "5")
    assert settings["strategy"]["class_path"] == HYBRID
    assert settings["strategy"]["init_args"]["regularization"] == 5
    assert settings["task"]["class_path"] == "bplightning.tasks.qa.QuestionAnswering"


def test_options_of_the_default_do_not_leak_into_another_choice(printed: Any, here: Path) -> None:
    """Both have `batch_size`, qa's default is 16 and this one's is 4."""
    config = write(here, {"task": "user_file.TinyTask"})
    typed = ["--task", "user_file.TinyTask", "--task.model", "x"]
    for args in (typed, ["--config", config, "--task.model", "x"]):
        assert printed("fit", *args)["task"]["init_args"] == {"model": "x", "batch_size": 4}
    assert (
        printed("--config", write(here, {"fit": {"task": "user_file.TinyTask"}}), "fit")["task"]["init_args"][
            "batch_size"
        ]
        == 4
    )


def test_options_may_come_before_the_choice(printed: Any) -> None:
    settings = printed("fit", "--task.model", "x", "--strategy.foo", "5", "--strategy", "user_file.MyStrategy")
    assert settings["strategy"] == {"class_path": "user_file.MyStrategy", "init_args": {"foo": 5}}


def test_what_is_typed_wins_over_files_wherever_it_stands(printed: Any, here: Path) -> None:
    config = write(here, {"strategy": "dense", "model": {"learning_rate": 0.5}})
    settings = printed("fit", "--strategy", "soft-movement", "--model.learning_rate", "1", "--config", config)
    assert settings["strategy"]["class_path"] == SOFT
    assert settings["model"]["learning_rate"] == 1


def test_printed_config_loads_again_and_takes_further_options(printed: Any, here: Path) -> None:
    first = printed("fit", "--task.model", "x", "--strategy", "soft-movement", "--strategy.regularization", "3")
    config = write(here, first)
    assert printed("fit", "--config", config) == first
    second = printed("fit", "--config", config, "--strategy", "hybrid", "--strategy.window.initial_warmup", "2")
    assert second["strategy"]["class_path"] == HYBRID
    window = first["strategy"]["init_args"]["window"] | {"initial_warmup": 2.0}
    assert second["strategy"]["init_args"] == first["strategy"]["init_args"] | {"window": window}
    assert second["task"] == first["task"]


def test_lightnings_strategy_keeps_its_name(printed: Any) -> None:
    settings = printed("fit", "--task.model", "x", "--trainer.strategy", "ddp", "--trainer.max_epochs", "3")
    assert settings["trainer"]["strategy"] == "ddp"
    assert settings["trainer"]["max_epochs"] == 3


# -- errors --------------------------------------------------------------------------------------------------------


def test_unknown_names_list_what_there_is(refused: Any, here: Path) -> None:
    for args in (
        ["--strategy", "hybird"],
        ["--config", write(here, {"strategy": "hybird"})],
        ["--strategy.help=hybird"],
    ):
        message = refused("fit", "--task.model", "x", *args)
        assert re.search(r"no strategy is called 'hybird'; there are: .*dense, .*hybrid, .*soft-movement", message)
        assert "my_file.MyStrategy" in message
    assert "no task is called 'qaa'; there are: classification, " in refused("fit", "--task", "qaa")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--strategy", "user_file.TinyTask"],
            "must derive from bplightning.contracts.strategy.PruningStrategy, and TinyTask does",
        ),
        (["--strategy.final_score_threshold", "abc"], "Expected a <class 'float'>. Got value: abc"),
        (["--strategy.nope", "1"], "Option 'nope' is not accepted"),
        (["--nope", "1"], "unrecognized arguments: --nope 1"),
        (["--config", "no_such.yaml"], "no_such.yaml"),
        (["--strategy", "user_file.MyStrategy", "--strategy.foo", "0"], "foo is 0; it must be 1 or more"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(refused: Any, args: list[str], said: str) -> None:
    assert said in refused("fit", "--task.model", "x", *args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["benchmark", "x", "--nonsense", "1"], "--nonsense"),
        (["benchmark", "x", "--batch_size", "8"], "--batch_size"),  # no abbreviation of --batch_sizes
        (["benchmark"], "folder"),
        (["benchmark", "x", "--dtype", "int4"], "int4"),
        (["compact", "x"], "out"),
        (["nonsense"], "nonsense"),
        (["compare", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["compare", "x", "--overwrite", "maybe"], "invalid choice: 'maybe'"),
    ],
)
def test_a_bad_word_to_a_verb_is_one_line(refused: Any, args: list[str], said: str) -> None:
    message = refused(*args)
    assert said in message
    assert f"(see bplightning{'' if args == ['nonsense'] else f' {args[0]}'} --help)" in message


@pytest.mark.parametrize("value", ["[", "{a: ", "@x", "{class_path: hybrid"])
def test_a_choice_that_is_no_yaml_is_one_line(refused: Any, value: str) -> None:
    message = refused("fit", "--strategy", value)
    assert f"--strategy is {value!r}, which is neither a name nor YAML (" in message
    assert "give a name such as hybrid, a class path, or {class_path: hybrid}" in message


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--strategy.final_score_threshold", "null"],
            "--strategy.final_score_threshold must not be null.* type float, .* default, 0.1",
        ),
        (
            ["--strategy", "user_file.MyStrategy", "--strategy.foo", "null"],
            "foo must not be null.* type int, .* default, 1",
        ),
        (
            ["--strategy", "{class_path: user_file.MyStrategy, init_args: {foo: null}}"],
            "--strategy.foo must not be null",
        ),
        (["--task", "user_file.TinyTask", "--task.batch_size", "null"], "--task.batch_size must not be null"),
        (["--config", "strategy.yaml"], "--strategy.final_score_threshold must not be null"),
        (["--config", "model.yaml"], "--model.learning_rate must not be null"),
        (["--config", "refill.yaml"], "--refill.max_epochs must not be null.* type int, .* default, 0"),
        (["--config", "baseline.yaml"], "--baseline must not be null.* type str, .* default, none"),
    ],
)
def test_null_is_refused_where_it_cannot_be(refused: Any, here: Path, args: list[str], said: str) -> None:
    (here / "strategy.yaml").write_text("strategy: {class_path: hybrid, init_args: {final_score_threshold: null}}")
    (here / "model.yaml").write_text("model: {learning_rate: null}")
    (here / "refill.yaml").write_text("refill: {max_epochs: null}")
    (here / "baseline.yaml").write_text("baseline: null")
    message = refused("fit", "--task.model", "x", *args)
    assert re.search(said, message)
    assert "must not be null: give a value of type" in message


@pytest.mark.parametrize("section", ["distillation", "refill", "model", "trainer"])
def test_a_value_where_options_have_options_of_their_own_is_refused(refused: Any, here: Path, section: str) -> None:
    (here / "bad.yaml").write_text(f"{section}: 3")
    assert re.search(rf"--{section} .*3", refused("fit", "--task.model", "x", "--config", "bad.yaml"))


@pytest.mark.parametrize(("key", "name"), [("task", "qa"), ("strategy", "hybrid")])
def test_neither_task_nor_strategy_is_null(refused: Any, here: Path, key: str, name: str) -> None:
    (here / "none.yaml").write_text(f"{key}: null")
    message = refused("fit", "--config", "none.yaml")
    assert f"--{key} must not be null: give a name such as {name}" in message


def test_null_stays_where_it_can_be(printed: Any, here: Path) -> None:
    content = {
        "strategy": {"class_path": "hybrid", "init_args": {"target": {"density": None}}},
        "task": {"class_path": "qa", "init_args": {"model": "x"}},
        "trainer": {"max_epochs": None, "logger": None},
        "refill": {"learning_rate": None},
        "quantize": None,
    }
    settings = printed("fit", "--config", write(here, content))
    assert settings["strategy"]["init_args"]["target"]["density"] is None
    assert settings["trainer"]["max_epochs"] is None
    typed = printed("fit", "--task.model", "x", "--strategy.target.density", "null", "--trainer.max_epochs", "null")
    assert typed["trainer"]["max_epochs"] is None


@pytest.mark.parametrize(
    "args",
    [
        ["benchmark", "x", "--output", "file/out.json"],
        ["benchmark", "x", "--plot", "file/deeper/out.png"],
        ["latency-table", "x", "file/out.json"],
        ["compare", "x", "--page", "file/out.html"],
    ],
)
def test_an_output_below_a_file_is_one_line(refused: Any, here: Path, args: list[str]) -> None:
    (here / "file").touch()
    said = f"the output '{args[-1]}' cannot be written, as 'file' is a file: name another folder"
    assert said in refused(*args)


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_a_report_in_place_of_its_run_is_one_line(refused: Any, here: Path, verb: str) -> None:
    (here / "report.json").touch()
    assert "report.json/report.json' does not exist: a run writes it at its end" in refused(verb, "report.json")


def test_a_folder_that_is_no_run_is_one_line(refused: Any) -> None:
    said = refused("compact", "runs/typo", "out")
    assert "'runs/typo' has no config.yaml: give the folder of a run, such as runs/qa-hybrid/version_0." in said


def test_prune_wants_a_model_that_is_fine_tuned(refused: Any, here: Path) -> None:
    assert "--task.model is not given" in refused("prune", "--strategy.target.flops", "0.5")
    config = write(here, {"task": {"class_path": "classification"}})
    assert "--task.model is not given" in refused("prune", "--config", config)


@pytest.mark.parametrize("args", [["fit"], ["validate"], ["plan"]])
def test_a_configuration_of_prune_says_what_it_is(refused: Any, here: Path, args: list[str]) -> None:
    content = {"calibration_examples": None, "strategy": "post-training"}
    message = refused(*args, "--config", write(here, content))
    assert "'calibration_examples': it is of a run of `prune`, and only `prune` takes it" in message
    assert "`validate --ckpt_path RUN/compact --task ...` evaluates it" in message


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: str) -> None:
        raise ValueError("a bug")

    add_verb(monkeypatch, "broken", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["broken", "x"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.ckpt"), "x.ckpt: No space left on device: make room on"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device: make room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied: name a place that you may"),
        (PermissionError(errno.EPERM, "Operation not permitted", "x"), "x: Operation not permitted: name a place"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system: name a place that can be"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    refused: Any, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    add_verb(monkeypatch, "write", raising(error))
    assert said in refused("write")


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add_verb(monkeypatch, "wait", raising(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stop:
        main(["wait"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "bplightning: interrupted\n"


def test_another_error_of_the_machine_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    add_verb(monkeypatch, "read", raising(FileNotFoundError(errno.ENOENT, "No such file", "x")))
    with pytest.raises(FileNotFoundError):
        main(["read"])


def add_verb(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """One more line in the table of verbs, for a function in a module of its own."""
    module = ModuleType(f"verb_{name}")
    module.run = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(VERBS, name, Verb(f"{module.__name__}:run", "A verb of this test."))


def raising(error: BaseException) -> Any:
    """A verb that ends so."""

    def verb() -> None:
        raise error

    return verb


# -- recipes -------------------------------------------------------------------------------------------------------


def test_recipe_holds_where_the_user_brings_nothing(printed: Any) -> None:
    settings = printed("fit", "--task", "user_file.TinyTask")
    assert settings["task"]["init_args"] == {"model": None, "batch_size": 2}
    assert settings["model"]["learning_rate"] == 0.25
    assert settings["trainer"]["max_steps"] == 7
    assert settings["baseline"] == "train"


def test_options_win_over_the_recipe(printed: Any) -> None:
    settings = printed("fit", "--task", "user_file.TinyTask", "--task.batch_size", "3", "--baseline", "none")
    assert settings["task"]["init_args"]["batch_size"] == 3
    assert settings["baseline"] == "none"
    assert settings["trainer"]["max_steps"] == 7


def test_recipe_steps_aside_for_a_model_or_a_configuration(printed: Any, here: Path) -> None:
    task = ["--task", "user_file.TinyTask"]
    for args in (
        ["fit", *task, "--task.model", "x"],
        ["fit", *task, "--task.init_args.model=x"],
        ["fit", *task, "--config", write(here, {"strategy": "dense"})],
        ["validate", *task],
    ):
        settings = printed(*args)
        assert settings["baseline"] == "none"
        assert settings["trainer"]["max_epochs"] == 20
        assert settings["trainer"]["max_steps"] == -1
        assert settings["task"]["init_args"]["batch_size"] == 4


# -- the run -------------------------------------------------------------------------------------------------------


def test_fit_runs_the_pipeline_in_a_numbered_folder(
    printed: Any, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []

    def fit(trainer: Any, module: Any, request: Any, **kwargs: Any) -> None:
        trainer.fit(module, datamodule=module.task, ckpt_path=request.ckpt_path, weights_only=request.weights_only)
        calls.append({"trainer": trainer, "module": module, **vars(request), **kwargs})

    monkeypatch.setattr(pipeline, "fit", fit)
    user = ["--task", "user_file.TinyTask", "--strategy", "user_file.MyStrategy", "--trainer.accelerator", "cpu"]
    user += ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    main(["fit", *user, "--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1"])
    call = calls.pop()
    assert type(call["module"].strategy).__name__ == "MyStrategy"
    assert call["baseline"] == "train"

    run = Path("runs/tiny-task-my-strategy/version_0")
    assert {item.name for item in run.iterdir()} == {"config.yaml", "checkpoints", "metrics.csv"}
    assert "step 4/4" in capsys.readouterr().out
    assert printed("fit", "--config", str(run / "config.yaml")) == yaml.safe_load((run / "config.yaml").read_text())

    baseline = call["stage_trainer"](here / "baseline")
    assert baseline.max_steps == 4
    assert Path(baseline.log_dir) == here / "baseline"
    assert "LearningRateMonitor" in {type(callback).__name__ for callback in baseline.callbacks}
    assert not set(map(id, baseline.callbacks)) & set(map(id, call["trainer"].callbacks))

    assert {item.name for item in (run / "checkpoints").iterdir()} == {"best-step=4.ckpt", "last.ckpt"}
    checkpoint = run / "checkpoints" / "last.ckpt"
    arguments = ["--ckpt_path", str(checkpoint), "--weights_only", "true", "--trainer.max_steps", "6"]
    main(["fit", "--config", str(run / "config.yaml"), *arguments])
    call = calls.pop()
    assert call["ckpt_path"] == str(checkpoint)
    assert call["trainer"].global_step == 6
    assert Path(call["trainer"].log_dir) == run.with_name("version_1")

    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint)])


def test_compact_is_a_sibling_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(compacting, "compact_run", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(sys, "argv", ["bin/bplightning", "compact", "a run", "out"])
    main(["compact", "runs/qa-hybrid/version_0", "out"])
    folders = Path("runs/qa-hybrid/version_0"), Path("out")
    command = {"command": "bplightning compact 'a run' out"}  # for the report
    usual: dict[str, Any] = dict.fromkeys(("checkpoint", "vocabulary", "dtype", "multiple_of")) | {"portable": False}
    assert calls.pop() == (folders, usual | command)
    options = ["--dtype", "float16", "--vocabulary=a.txt", "--checkpoint", "best", "--multiple_of", "16"]
    main(["compact", *map(str, folders), *options, "--portable", "true"])
    given = {"checkpoint": "best", "vocabulary": Path("a.txt"), "dtype": "float16", "multiple_of": 16, "portable": True}
    assert calls.pop() == (folders, given | command)


def test_predict_is_a_sibling_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(predicting, "predict_file", lambda *args, **options: calls.append((args, options)))
    usual = {"input_path": "-", "output_path": "-", "task": None, "batch_size": None}
    usual |= {"accelerator": "auto", "overwrite": False}
    main(["predict", "fit"])
    assert calls.pop() == (("fit",), usual)
    main(["predict", "--input", "test", "--batch_size=4", "m", "--task", "a.B", "--output", "-", "--overwrite=true"])
    assert calls.pop() == (("m",), usual | {"input_path": "test", "batch_size": 4, "task": "a.B", "overwrite": True})


def test_plan_has_a_parser_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(plan_cli, "run_plan", calls.append)
    main(["plan", "--config", "fit", "--help.all"])
    assert calls == [["--config", "fit", "--help"]]


def test_a_verb_is_one_function(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(run: str, rounds: int = 5) -> None:
        """Measure a run.

        Args:
            run: Folder of a run.
            rounds: Times each measurement is repeated.
        """
        print(run, rounds + 1)

    add_verb(monkeypatch, "measure", measure)
    main(["measure", "fit", "--rounds", "2"])
    assert capsys.readouterr().out == "fit 3\n"
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    assert "Times each measurement is repeated." in capsys.readouterr().out


# -- help ----------------------------------------------------------------------------------------------------------


def help_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_lists_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "--help")
    for name, verb in VERBS.items():
        assert f" {name} {verb.line}" in text


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_of_the_table_is_there(name: str) -> None:
    assert callable(VERBS[name].load())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(capsys, "--version") == f"bplightning {bplightning.__version__}"


def test_the_program_and_its_module_have_names_of_their_own() -> None:
    assert importlib.import_module("bplightning.cli.program").main is bplightning.cli.main
    assert importlib.util.find_spec("bplightning.cli.main") is None


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["benchmark", "--nonsense"], *([verb, "--help"] for verb in VERBS)]
)
def test_what_needs_no_model_imports_no_torch(args: list[str]) -> None:
    look = f"import sys, bplightning.cli\ntry:\n    bplightning.cli.main({args})\nexcept SystemExit:\n    pass\n"
    look += "print(sorted({'torch', 'transformers', 'lightning'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_help_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "fit", "--help.all")
    for name in ("dense", "hybrid", "soft-movement", "qa", "my_file.MyStrategy", "--strategy.help", "--ckpt_path"):
        assert name in text
    for option in ("--strategy.regularization", "--task.max_length", "--model.learning_rate", "--baseline"):
        assert option in text
    assert "HeldZeros" not in text
    assert "known subclasses: bpl" not in text
    chosen = help_of(capsys, "fit", "--strategy", "user_file.MyStrategy", "--help.all")
    assert "--strategy.foo FOO Number of foos, 1 or more. (type: int, default: 1)" in chosen
    assert "--strategy.regularization" not in chosen


@pytest.mark.parametrize(
    ("key", "name", "option"), [("strategy", "hybrid", "regularization"), ("task", "qa", "stride")]
)
def test_help_of_a_plugin_by_name(capsys: pytest.CaptureFixture[str], key: str, name: str, option: str) -> None:
    assert f"--{key}.{option}" in help_of(capsys, "fit", f"--{key}.help", name)


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize(
    "program",
    [[str(ROOT / "cli.py")], ["-m", "bplightning"], [str(Path(sys.executable).with_name("bplightning"))]],
)
def test_three_ways_to_the_one_program(program: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, *program, option],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert " ".join(done.stdout.split()) == help_of(capsys, option)
