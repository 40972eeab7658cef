"""`fit`, `validate` and `test` around checkpoints: what is kept by default, what `last` means, what is left behind."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from bplightning.cli import main
from bplightning.compaction.vocabulary import Corpus, trim_vocabulary
from bplightning.io import run_folder
from bplightning.stages import pipeline
from bplightning.tasks.qa import QuestionAnswering
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.training.kept_checkpoints import LastCheckpoint, PrunedCheckpoint

pytestmark = pytest.mark.slow

USER_FILE = """
from pathlib import Path
from tiny_task import TinyTask


class Tiny(TinyTask):
    def __init__(self, spoil: bool = False, hub_token: str | None = None):
        super().__init__(Path(), hidden_size=16, intermediate_size=32)
        self.spoil = spoil

    def loss(self, outputs, batch):
        return outputs.loss * float("nan") if self.spoil else outputs.loss

    test_dataloader = TinyTask.val_dataloader
"""
OPTIONS = [
    *("--task", "user_tiny.Tiny", "--strategy", "hybrid", "--strategy.granularity", "{attention: 4x4}"),
    *("--strategy.window.initial_warmup", "0", "--strategy.window.final_warmup", "1", "--model.learning_rate", "1e-3"),
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "6", "--trainer.val_check_interval", "3"),
    *("--trainer.num_sanity_val_steps", "0"),
]

LOGGER = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine", "--trainer.logger.name", "sub"]
OWN_FOLDER = [
    *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=mine"),
    *("--trainer.callbacks.save_last=true", "--trainer.callbacks.save_top_k=0"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder but for a user's own task."""
    (tmp_path / "user_tiny.py").write_text(USER_FILE)
    monkeypatch.delitem(sys.modules, "user_tiny", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # What follows training is tested elsewhere, and takes longest.
    monkeypatch.setattr(pipeline, "finish", lambda trainer, *args, **kwargs: trainers.append(trainer))
    trainers.clear()
    return tmp_path


trainers: list[Any] = []


def fit(*more: str) -> Any:
    main(["fit", *OPTIONS, *more])
    return trainers[-1]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    line = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(line) == 1
    return line[0]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in str(path)}


# -- what is kept --------------------------------------------------------------------------------------------------


def test_the_best_pruned_and_the_last_are_kept(here: Path) -> None:
    trainer = fit()
    best, last = (callback for callback in trainer.callbacks if isinstance(callback, Checkpoint))
    assert isinstance(best, PrunedCheckpoint)
    assert (best.monitor, best.mode) == ("val_accuracy", "max")
    assert isinstance(last, LastCheckpoint)
    assert {path.name for path in Path("runs/tiny-hybrid/version_0/checkpoints").iterdir()} == {
        "best-step=6.ckpt",
        "last.ckpt",
    }


def test_what_the_user_configures_wins() -> None:
    trainer = fit("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine")
    assert [type(callback) for callback in trainer.checkpoint_callbacks] == [ModelCheckpoint]
    assert not fit("--trainer.enable_checkpointing", "false").checkpoint_callbacks
    ours = fit(
        "--trainer.callbacks+=bplightning.training.kept_checkpoints.LastCheckpoint",
        "--trainer.callbacks.every_minutes=3",
    )
    assert [callback.every for callback in ours.checkpoint_callbacks] == [180]
    one = fit("--trainer.callbacks", "bplightning.training.kept_checkpoints.LastCheckpoint")  # not in a list
    assert [type(callback) for callback in one.checkpoint_callbacks] == [LastCheckpoint]


def test_tensorboard_gets_losses_and_densities_by_name() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(
        *("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "mine"),
        *("--trainer.log_every_n_steps", "2"),
    )
    assert Path(run.log_dir).resolve() == Path("mine/lightning_logs/version_0").resolve()
    events = EventAccumulator(run.log_dir)
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("task_loss", "penalty", "density/attention", "density/feed_forward", "density/total"):
        assert steps[tag] == [1, 3, 5], tag
    for tag in ("val_accuracy", "val_density", "val_target_reached"):
        assert steps[tag] == [2, 5], tag
    logged = events.Scalars("val_density")[-1].value
    assert logged == pytest.approx(float(run.lightning_module.strategy.density()["total"]))
    assert 0 < logged < 1


# -- last and best -------------------------------------------------------------------------------------------------


def test_last_is_the_newest_of_all_runs(caplog: pytest.LogCaptureFixture) -> None:
    fit()
    caplog.set_level(logging.INFO)
    again = fit("--ckpt_path", "last", "--trainer.max_steps", "8")
    assert again.global_step == 8
    assert str(again.ckpt_path) == "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"
    assert "The newest checkpoint is runs/tiny-hybrid/version_0/checkpoints/last.ckpt." in caplog.text
    third = fit("--ckpt_path", "last", "--trainer.max_steps", "9")
    assert str(third.ckpt_path) == "runs/tiny-hybrid/version_1/checkpoints/last.ckpt"


def test_without_any_checkpoint_last_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for logger in ([], ["--trainer.logger", "false"], LOGGER, OWN_FOLDER):
        message = refused(capsys, "fit", *OPTIONS, *logger, "--ckpt_path", "last")
        assert "--ckpt_path is 'last', but there is no such checkpoint" in message
        assert "leave --ckpt_path out to " in message
    assert not trainers


def test_a_folder_of_the_users_own_keeps_lightnings_meaning(tmp_path: Path) -> None:
    own = [*OWN_FOLDER, "--trainer.callbacks.every_n_train_steps=2"]
    fit(*own)
    assert str(fit(*own, "--ckpt_path", "last", "--trainer.max_steps", "8").ckpt_path) == f"{tmp_path}/mine/last.ckpt"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it does: one run goes on there
@pytest.mark.parametrize("logger", [["--trainer.logger", "false"], LOGGER])
def test_last_and_best_are_found_where_the_users_logger_puts_runs(here: Path, logger: list[str]) -> None:
    fit(*logger)
    (first,) = here.rglob("last.ckpt")
    assert first.resolve() == Path(fit(*logger, "--ckpt_path=last", "--trainer.max_steps=8").ckpt_path).resolve()
    main(["validate", *OPTIONS, *logger, "--ckpt_path", "best"])


def test_two_runs_in_one_folder_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--trainer.logger", "false")
    message = refused(capsys, "fit", *OPTIONS, "--trainer.logger", "false")
    assert "holds another run's config.yaml: choose another --trainer.default_root_dir, or --ckpt_path last" in message


def test_another_run_of_the_same_strategy_is_not_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--strategy.final_score_threshold", "0.05")
    fit("--strategy.final_score_threshold", "0.1", "--seed_everything", "3")
    again = fit("--strategy.final_score_threshold", "0.05", "--ckpt_path", "last", "--trainer.max_steps", "8")
    assert str(again.ckpt_path) == "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"
    other = [*OPTIONS, "--strategy.final_score_threshold", "0.07", "--ckpt_path", "last"]
    message = refused(capsys, "test", *other)  # which asks for the same strategy, but not for the same seed
    assert (
        "no earlier run has these settings; of the newest, 'runs/tiny-hybrid/version_2', differ: strategy." in message
    )
    file = "runs/tiny-hybrid/version_2/checkpoints/last.ckpt"
    assert f"is 0.05 there and 0.07 here. Give its options, or its checkpoint by path, for example '{file}'" in message
    message = refused(capsys, "fit", *other, "--seed_everything", "4", "--trainer.gradient_clip_val", "2.5")
    for name, there, here in (
        ("seed_everything", "0", "4"),
        ("strategy.final_score_threshold", "0.05", "0.07"),
        ("trainer.gradient_clip_val", "1.0", "2.5"),
    ):
        assert f"{name} is {there} there and {here} here" in message
    assert len(trainers) == 3


def test_a_run_that_has_ended_is_gone_on_with_only_for_longer(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    Path("runs/tiny-hybrid/version_0/report.json").touch()
    message = refused(capsys, "fit", *OPTIONS, "--ckpt_path", "last")
    assert "that run, 'runs/tiny-hybrid/version_0', has ended: its report.json is there. Raise trainer.max" in message
    main(["validate", *OPTIONS, "--ckpt_path", "last"])
    assert fit("--ckpt_path", "last", "--trainer.max_steps", "8").global_step == 8


def test_a_checkpoint_by_a_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    fit()
    monkeypatch.chdir("runs/tiny-hybrid/version_0/checkpoints")
    assert fit("--ckpt_path", "last.ckpt", "--trainer.max_steps", "8").global_step == 8


def test_the_best_so_far_is_the_best_of_the_run_that_goes_on() -> None:
    fit()
    fit("--ckpt_path", "last", "--trainer.max_steps", "7")
    best = Path("runs/tiny-hybrid/version_1/checkpoints/best-step=6.ckpt")
    assert best.read_bytes() == Path("runs/tiny-hybrid/version_0/checkpoints/best-step=6.ckpt").read_bytes()


# -- validate and test ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_leaves_nothing_behind(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit()
    before = files(here)
    for which in ("last", "best", "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"):
        capsys.readouterr()
        main([verb, *OPTIONS, "--ckpt_path", which])
        said = capsys.readouterr()
        assert f"{'val' if verb == 'validate' else 'test'}_accuracy" in said.out
        assert f"{float(trainer.callback_metrics['val_accuracy']):.1f}" in said.out
        assert "callbacks used to create the checkpoint" not in said.err
    assert files(here) == before


def test_a_models_folder_is_evaluated_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit()
    module = trainer.lightning_module
    module.harden().save_pretrained("saved")
    before = files(here)
    main(["validate", *OPTIONS, "--ckpt_path", "saved"])
    assert f"{float(trainer.callback_metrics['val_accuracy']):.1f}" in capsys.readouterr().out
    assert files(here) == before
    run = Path("runs/tiny-hybrid/version_0")  # its newest checkpoint, until it has a compact model
    main(["validate", *OPTIONS, "--ckpt_path", str(run)])
    assert f"{float(trainer.callback_metrics['val_accuracy']):.1f}" in capsys.readouterr().out
    shutil.copytree("saved", run / "compact")
    (run / "checkpoints" / "last.ckpt").unlink()
    main(["validate", *OPTIONS, "--ckpt_path", str(run)])
    assert f"{float(trainer.callback_metrics['val_accuracy']):.1f}" in capsys.readouterr().out
    message = refused(capsys, "validate", *OPTIONS, "--ckpt_path", "runs")
    assert (
        "the model 'runs' exists, but is not a model folder, run folder or checkpoint: give a model's folder" in message
    )
    weights = Path("saved/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "--ckpt_path 'saved' cannot be loaded" in refused(capsys, "test", *OPTIONS, "--ckpt_path", "saved")


def test_a_folder_with_a_vocabulary_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["Anna lives in Dinmouth.", "Otto, who is a baker, lives in Farham.", "Rain fell on Monday in Kelby."]
    rows = [
        {"id": str(i), "context": text, "question": "Who lives in Dinmouth?",
         "answers": {"text": [text[:4]], "answer_start": [0]}}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = QuestionAnswering(model=str(EMBEDDED_MODEL))
    full, tokenizer = task.build_model(), task.tokenizer
    trimmed = trim_vocabulary(full, tokenizer, Corpus(Path("data.jsonl")))
    for folder, (model, its) in {"full": (full, tokenizer), "small": (trimmed.model, trimmed.tokenizer)}.items():
        model.save_pretrained(folder)
        its.save_pretrained(folder)
    options = ["--task=qa", f"--task.model={EMBEDDED_MODEL}", "--task.validation_file=data.jsonl"]
    options += ["--trainer.accelerator=cpu"]
    scores = {}
    for folder in ("full", "small"):
        main(["validate", *options, "--ckpt_path", folder])
        scores[folder] = re.findall(r"val_\w+\s+\S*\s*([\d.]+)", capsys.readouterr().out)
    assert scores["full"] == scores["small"]
    assert any(float(score) > 0 for score in scores["full"])

    message = refused(capsys, "fit", *options, "--task.train_file=data.jsonl", "--baseline", "small")
    assert re.search(r"baseline 'small' has \d+ tokens, but the task's tokenizer \d+: .* give the folder", message)
    for file in Path("small").glob("tokenizer*"):
        file.unlink()
    assert "--ckpt_path 'small' has " in refused(capsys, "validate", *options, "--ckpt_path", "small")


def test_a_damaged_last_one_is_named_with_the_good_one_from_which_the_run_then_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit("--resume", "true")
    (best,) = Path("runs/tiny-hybrid/version_0/checkpoints").glob("best-*.ckpt")
    last = best.with_name("last.ckpt")
    damaged = last.read_bytes()[:-1000]
    last.unlink()  # it may be a second name of the best one
    last.write_bytes(damaged)
    for how in (["--resume", "true"], ["--ckpt_path", "last"]):
        said = refused(capsys, "fit", *OPTIONS, *how)
        assert f"checkpoint '{last}' cannot be read (" in said
        assert f"the newest good one of this run is '{best}', of optimizer step 6" in said
        assert "remove last.ckpt and repeat the command, with --resume true or --ckpt_path last" in said
    last.unlink()
    assert fit("--resume", "true").ckpt_path == best


# -- errors --------------------------------------------------------------------------------------------------------


def test_what_goes_wrong_in_training_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *OPTIONS, "--task.spoil", "true")
    assert "the loss is NaN or infinite at optimizer step 1" in message


def test_a_checkpoint_of_another_strategy_is_refused_in_every_verb(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    file = "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"
    kept = torch.load(file, weights_only=True)["global_step"]
    other = [*OPTIONS[:2], "--strategy", "dense", *OPTIONS[10:]]
    for verb in ("fit", "validate", "test"):
        message = refused(capsys, verb, *other, "--ckpt_path", file)
        assert f"checkpoint '{file}' is of another model or strategy (the file also has strategy." in message
    assert torch.load(file, weights_only=True)["global_step"] == kept


def test_a_useless_checkpoint_is_refused_before_a_baseline_is_trained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    monkeypatch.setattr(pipeline, "train_baseline", lambda *args: pytest.fail("a baseline is trained"))
    file = Path("runs/tiny-hybrid/version_0/checkpoints/last.ckpt")
    with_baseline = ["--baseline", "train", "--ckpt_path", str(file)]
    other = [*OPTIONS[:2], "--strategy", "dense", *OPTIONS[10:]]
    for start in ("pretrained", "baseline"):
        message = refused(capsys, "fit", *other, *with_baseline, "--start", start)
        assert f"checkpoint '{file}' is of another model or strategy" in message
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"checkpoint '{file}' cannot be read" in refused(capsys, "fit", *OPTIONS, *with_baseline)
    file.unlink()
    assert f"checkpoint '{file}' cannot be read" in refused(capsys, "fit", *OPTIONS, *with_baseline)


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_file_that_is_no_checkpoint_is_one_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    good = Path("runs/tiny-hybrid/version_0/checkpoints/last.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(good[:-1000])
    Path("text.ckpt").write_text("hello")
    for file in ("cut.ckpt", "text.ckpt", "absent.ckpt"):
        assert f"checkpoint '{file}' cannot be read" in refused(capsys, verb, *OPTIONS, "--ckpt_path", file)


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *OPTIONS, "--trainer.accelerator", "tpu")
    assert "the trainer cannot be set up so (" in message
    assert "--trainer.accelerator is 'tpu', and 'auto' takes what this machine has" in message


def test_a_place_that_cannot_be_written_is_refused_before_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs").write_text("a file")
    assert "the run's folder 'runs/tiny-hybrid/version_0' cannot be written ('" in refused(capsys, "fit", *OPTIONS)
    assert not trainers


def test_a_folder_that_cannot_be_made_is_refused_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *OPTIONS, "--trainer.default_root_dir", "/proc/x")
    assert "the run's folder '/proc/x/runs/tiny-hybrid/version_0' cannot be written ('/proc'" in message
    assert "choose another trainer.default_root_dir" in message


@pytest.mark.parametrize("option", ["max_epochs", "max_steps"])
def test_a_run_of_no_training_is_refused(here: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    message = refused(capsys, "fit", *OPTIONS, f"--trainer.{option}", "0")
    assert f"--trainer.{option} is 0, so nothing would be trained or pruned: give 1 or more" in message
    assert not (here / "runs").exists()


def test_a_run_that_is_refused_leaves_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "fit", *OPTIONS, "--start", "baseline")
    assert not list(here.glob("runs/*/*"))


def test_a_run_that_another_process_works_on_is_not_resumed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0)
    run = Path(fit("--resume", "true").log_dir)
    with run_folder.worked_on(run):
        message = refused(capsys, "fit", *OPTIONS, "--resume", "true")
        assert f"another process is working on the run '{run}': wait for its end, or stop it" in message
        assert Path(fit().log_dir) == run.with_name("version_1")  # without --resume it is another run
    (run / "config.yaml").unlink()  # one that is just beginning may be the same
    shutil.rmtree(run.with_name("version_1"))
    with run_folder.worked_on(run):
        assert "another process is working on the run" in refused(capsys, "fit", *OPTIONS, "--resume", "true")
    assert Path(fit("--resume", "true").log_dir) == run.with_name("version_1")


def test_resume_begins_a_run_and_goes_on_with_it_in_its_own_folder(capsys: pytest.CaptureFixture[str]) -> None:
    first = fit("--resume", "true")
    lines = Path(first.log_dir, "metrics.csv").read_text().splitlines()
    again = fit("--resume", "true")
    assert again.log_dir == first.log_dir == "runs/tiny-hybrid/version_0"
    assert str(again.ckpt_path) == "runs/tiny-hybrid/version_0/checkpoints/last.ckpt"
    assert Path(first.log_dir, "metrics.csv").read_text().splitlines()[: len(lines)] == lines
    assert (
        fit("--resume", "true", "--trainer.max_steps", "7").log_dir == "runs/tiny-hybrid/version_1"
    )  # longer: another
    assert fit("--resume", "true", "--distillation.alpha_ce", "0.5").log_dir == "runs/tiny-hybrid/version_2"
    assert fit("--resume", "true").log_dir == first.log_dir
    assert fit().log_dir == "runs/tiny-hybrid/version_3"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.csv", "a,b\n1,2,3\n", "metrics.csv' is damaged (its rows have not the columns of its first line)"),
        ("metrics.csv", b"\xff\n", "metrics.csv' is damaged ('utf-8' codec can't decode byte"),
        ("metrics.csv", "\n1\n", "metrics.csv' is damaged"),
        ("config.yaml", "task: {class_path", "config.yaml' cannot be read"),
        ("config.yaml", "", "config.yaml' cannot be read (it holds a NoneType"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_the_way_out(
    capsys: pytest.CaptureFixture[str], file: str, content: str | bytes, said: str
) -> None:
    run = Path(fit("--resume", "true").log_dir)
    kept = (run / file).read_bytes()
    (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(capsys, "fit", *OPTIONS, "--resume", "true")
    assert said in line
    assert "remove or rename it and repeat" in line or "restore the file, or move the folder away" in line
    (run / file).write_bytes(kept)
    assert Path(fit("--resume", "true").log_dir) == run


def test_a_run_is_resumed_whatever_its_secrets_are(capsys: pytest.CaptureFixture[str]) -> None:
    first = fit("--resume", "true", "--task.hub_token", "CANARY1")
    config = Path(first.log_dir, "config.yaml")
    assert "CANARY1" not in config.read_text()
    assert fit("--resume", "true", "--task.hub_token", "CANARY2").log_dir == first.log_dir
    assert fit("--resume", "true").log_dir != first.log_dir  # one that has none is another run
    config.write_text(config.read_text().replace("<masked>", "CANARY1"))  # as earlier versions wrote it
    assert fit("--resume", "true", "--task.hub_token", "CANARY2").log_dir == first.log_dir
    said = refused(capsys, "validate", "--config", str(config.with_name("config.yaml")), "--task.hub_token", "<masked>")
    assert "--task.hub_token was masked" in said


def test_resume_goes_on_with_a_run_of_an_earlier_version() -> None:
    first = fit("--resume", "true", "--strategy.target.density", "0.5")
    config = Path(first.log_dir, "config.yaml")
    settings = yaml.safe_load(config.read_text())
    options = settings["strategy"]["init_args"]
    old = options.pop("window") | {"target_density": options.pop("target")["density"], "target_flops_speedup": None}
    options |= old
    config.write_text(yaml.safe_dump(settings))
    assert fit("--resume", "true", "--strategy.target.density", "0.5").log_dir == first.log_dir
    assert fit("--resume", "true", "--strategy.target.density", "0.4").log_dir != first.log_dir


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (LOGGER, "and --trainer.logger is given"),
        (["--ckpt_path", "last"], "and --ckpt_path is given"),
        (
            ["--trainer.enable_checkpointing", "false"],
            "and a checkpoint callback is given, or checkpoints are not kept",
        ),
    ],
)
def test_what_resume_does_not_go_with(capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    said = refused(capsys, "fit", *OPTIONS, "--resume", "true", *more)
    assert message in said
    assert "leave that out, or give --resume false" in said
