"""Completion scripts and the schema of configuration files say what the command line takes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bplightning.cli.completion import completion_script, config_schema

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> Any:
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = tmp_path_factory.mktemp("bash") / "completion"
    script.write_text(completion_script("bash"))
    return script


def test_every_recipe_is_one(schema: Any) -> None:
    assert CONFIGS
    for path in CONFIGS:
        schema.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"strategy": {"class_path": "hybrid", "init_args": {"target": {"density": 0.25}}}}, False),
        ({"strategy": {"class_path": "hybrid", "init_args": {"target": {"densty": 0.25}}}}, True),
        ({"strategy": {"class_path": "hybrid", "init_args": {"target": {"density": "much"}}}}, True),
        ({"strategy": "hybrid"}, False),
        ({"strategy": "my_file.MyStrategy"}, False),
        ({"strategy": "hybird"}, True),
        ({"task": {"class_path": "my_file.MyTask", "init_args": {"anything": 1}}}, False),
        ({"trainer": {"max_epochs": 3}, "refill": {"max_epochs": 4}}, False),
        ({"trainer": {"max_epoch": 3}}, True),
        ({"refill": {"epochs": 4}}, True),
    ],
)
def test_what_is_misspelled_is_marked(schema: Any, config: dict[str, Any], wrong: bool) -> None:
    assert bool(list(schema.iter_errors(config))) is wrong


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ex"], {"export"}),
        (["fit", "--strategy", ""], {"dense", "hybrid", "movement"}),
        (["fit", "--task", "q"], {"qa"}),
        (["fit", "--strategy.target.d"], {"--strategy.target.density"}),
        (["fit", "--quantize", ""], {"int8", "int8-static"}),
        (["plan", "--meas"], {"--measure"}),
        (["prune", "--cal"], {"--calibration_examples"}),
        (["compare", "--see"], {"--seeds"}),
        (["benchmark", "--device", ""], {"cpu", "cuda"}),
    ],
)
def test_bash_completes(bash: Path, words: list[str], offered: set[str]) -> None:
    assert offered <= completed(bash, words)


@pytest.mark.parametrize(
    ("before", "there", "not_there"),
    [
        (["--strategy", "l0"], "--strategy.granularity", "--strategy.target.density"),
        (["--strategy=l0"], "--strategy.granularity", "--strategy.target.density"),
        (["--strategy", "ziplm"], "--strategy.search_tries", "--strategy.regularization"),
        ([], "--strategy.regularization", "--strategy.search_tries"),  # hybrid is the default
    ],
)
def test_bash_offers_the_options_of_the_chosen_strategy_only(
    bash: Path, before: list[str], there: str, not_there: str
) -> None:
    found = completed(bash, ["fit", *before, "--"])
    assert there in found
    assert not_there not in found
    assert {"--strategy.help", "--trainer.max_epochs", "--task.model"} <= found
    with_file = completed(bash, ["fit", "--config", "my.yaml", "--"])  # which may name any strategy
    assert {"--strategy.search_tries", "--strategy.regularization"} <= with_file


def completed(bash: Path, words: list[str]) -> set[str]:
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in ["bplightning", *words])
    setting = f"source {bash}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}"
    asking = "$(complete -p bplightning | sed 's/.*-F //;s/ .*//'); printf '%s\\n' ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{setting}; {asking}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
