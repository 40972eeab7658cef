"""Configurations name registered plugins and what was typed; nothing that came with a folder chooses code."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_folders import CANARY, MODULE, SECTIONS, run_that_names, write_module
from jsonargparse._common import get_parsing_setting

from bplightning.cli import main
from bplightning.errors import UserError
from bplightning.runs.build import build
from bplightning.runs.matching_runs import find_same
from bplightning.runs.reading import load_run

NAMED = rf"configuration names the (class|task|strategy) '{MODULE}.Anything', .* add --trust {MODULE}.Anything to"
OWN = "from bplightning.strategies.hybrid import Hybrid\n\n\nclass Own(Hybrid):\n    pass\n"
CALLBACK = "from lightning.pytorch import Callback\n\n\nclass Mine(Callback):\n    pass\n"


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The canary's file; the hostile module lies in the current folder, which modules are searched in."""
    here = tmp_path / "here"
    here.mkdir()
    write_module(here)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(CANARY, str(tmp_path / "canary"))
    for name in (MODULE, "own_pruning", "own_callbacks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "canary"


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as e:
        main(list(args))
    said = capsys.readouterr().err
    assert e.value.code == 2
    assert len(said.strip().splitlines()) == 1, said
    return said


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_file_names_no_code(kind: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_that_names(tmp_path / "run", SECTIONS[kind])
    refused(capsys, "fit", "--config", str(run / "config.yaml"), "--task.model", str(tmp_path))
    if "trainer" not in SECTIONS[kind]:  # which is not read back
        with pytest.raises(UserError):
            load_run(run)
    assert not canary.exists()
    assert MODULE not in sys.modules


@pytest.mark.parametrize("verb", ["plan", "prune", "validate", "compact", "predict"])
def test_no_verb_imports_what_a_file_names(
    verb: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_that_names(tmp_path / "run", SECTIONS["strategy"])
    rest = {"compact": [str(run), "out"], "predict": [str(run), "--input", str(run / "config.yaml")]}
    refused(capsys, verb, *rest.get(verb, ["--config", str(run / "config.yaml"), "--task.model", str(tmp_path)]))
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["task", "strategy", "callbacks", "logger, by name"])
def test_the_refusal_says_what_to_type(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    run = run_that_names(tmp_path / "run", SECTIONS[kind])
    assert re.search(NAMED, refused(capsys, "validate", "--config", str(run / "config.yaml")))
    if kind in ("task", "strategy"):
        with pytest.raises(UserError, match=NAMED):
            load_run(run)


def test_runs_next_to_a_resumed_one_name_no_code(canary: Path, tmp_path: Path) -> None:
    run = run_that_names(tmp_path / "run", SECTIONS["task"] | SECTIONS["strategy"])
    assert find_same([run], {"task": {"class_path": "bplightning.tasks.qa.QuestionAnswering"}}) is None
    assert not canary.exists()


def test_weights_only_counts_when_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("weights_only: false\ntask: {class_path: qa, init_args: {model: x}}\n")
    for more, kept in (([], None), (["--weights_only", "false"], False)):
        with pytest.raises(SystemExit):
            main(["validate", "--config", str(tmp_path / "config.yaml"), *more, "--print_config"])
        printed = capsys.readouterr()
        assert yaml.safe_load(printed.out)["weights_only"] is kept
        assert "give --weights_only false" in printed.err


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as e:
        main([*args, "--print_config"])
    out = capsys.readouterr()
    assert e.value.code == 0, out.err
    found: dict[str, Any] = yaml.safe_load(out.out)
    return found


def test_what_is_typed_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_pruning.py").write_text(OWN)
    Path("own_callbacks.py").write_text(CALLBACK)
    Path("c.yaml").write_text(
        "strategy: {class_path: own_pruning.Own}\ntrainer: {callbacks: [{class_path: own_callbacks.Mine}]}\n"
    )
    refused(capsys, "fit", "--config", "c.yaml", "--print_config")
    trusted = ["--trust", "own_callbacks.Mine,own_pruning.Own"]
    found = printed(capsys, "fit", "--config", "c.yaml", *trusted)
    assert found["strategy"]["class_path"] == "own_pruning.Own"
    assert found["trainer"]["callbacks"][0]["class_path"] == "own_callbacks.Mine"
    assert "trust" not in found
    typed = ["--strategy", "own_pruning.Own", "--trainer.callbacks=[{class_path: own_callbacks.Mine}]"]
    assert printed(capsys, "fit", "--config", "c.yaml", *typed)["strategy"]["class_path"] == "own_pruning.Own"
    assert printed(capsys, "fit", *typed)["trainer"]["callbacks"][0]["class_path"] == "own_callbacks.Mine"


def test_a_file_cannot_trust_itself(canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(yaml.safe_dump(SECTIONS["task"] | {"trust": f"{MODULE}.Anything"}))
    refused(capsys, "fit", "--config", "c.yaml")
    Path("c.yaml").write_text(yaml.safe_dump({"trust": f"{MODULE}.Anything"}))
    refused(capsys, "fit", "--config", "c.yaml")
    assert not canary.exists()


def test_a_run_with_a_class_of_ones_own_is_read_where_that_is_trusted_or_imported() -> None:
    Path("own_pruning.py").write_text(OWN)
    task = {"class_path": "classification", "init_args": {"model": "x"}}
    settings = {"strategy": {"class_path": "own_pruning.Own"}, "task": task}
    with pytest.raises(UserError, match=r"in Python, import own_pruning first"):
        build(settings)
    import own_pruning  # noqa: F401

    assert type(build(settings).module.strategy).__name__ == "Own"


def test_lightnings_own_and_registered_ones_need_no_trust(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(
        "strategy: {class_path: bplightning.strategies.hybrid.Hybrid}\n"
        "trainer: {logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: x}},"
        " callbacks: [EarlyStopping, {class_path: bplightning.training.progress_lines.ProgressLines}],"
        " profiler: lightning.pytorch.profilers.SimpleProfiler}\n".replace(
            "EarlyStopping", "{class_path: EarlyStopping, init_args: {monitor: val_f1}}"
        )
    )
    found = printed(capsys, "fit", "--config", "c.yaml")
    assert found["trainer"]["profiler"]["class_path"] == "lightning.pytorch.profilers.SimpleProfiler"


@pytest.mark.parametrize(
    "content",
    [
        "task: &a [*a]\n",
        "a: &a [x]\n" + "".join(f"{b}: &{b} [{'*' + a}{(', *' + a) * 9}]\n" for a, b in pairwise("abcdefgh")),
        "strategy: {class_path: hybrid, init_args: {target: [1]}}\ntask: {class_path: classification}\n",
    ],
)
def test_forged_configurations_are_one_line(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_that_names(tmp_path / "run", {})
    (run / "config.yaml").write_text(content)
    refused(capsys, "validate", "--config", str(run / "config.yaml"), "--task.model", str(tmp_path))
    refused(capsys, "predict", str(run), "--input", str(run / "config.yaml"))
    with pytest.raises(UserError, match=r"cannot be read|of another form \(argument after .* must be a mapping"):
        load_run(run)


def test_options_that_a_constructor_does_not_take_are_one_line(tmp_path: Path) -> None:
    task = {"class_path": "classification", "init_args": {"model": "x"}, "dict_kwargs": {"other": 1}}
    with pytest.raises(UserError, match=r"config\.yaml' cannot be read .*'other'"):
        load_run(run_that_names(tmp_path / "run", {"task": task}))


def test_the_settings_of_other_parsers_stay_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(get_parsing_setting("import_path_verdicts"))
    refused(capsys, "fit", "--config", "nowhere.yaml")
    assert get_parsing_setting("import_path_verdicts") == before
    assert get_parsing_setting("import_paths_enforced") is False
