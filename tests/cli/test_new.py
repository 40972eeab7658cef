"""`bplightning new`: what it writes works as it stands, and comes from the examples."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bplightning.cli import main
from bplightning.cli.new import TEMPLATES, files_of

EXAMPLES = Path(__file__).parents[2] / "examples"
OLD_SPELLINGS = ("taylor-pruning", "taylor_pruning", "TaylorPruning", "star-rating", "star_rating", "StarRating")
WRITTEN = {
    "strategy": {"README.md", "pyproject.toml", "my_own.py", "test_my_own.py"},
    "task": {
        "README.md",
        "pyproject.toml",
        "test_my_own.py",
        "bplightning_my_own/__init__.py",
        "bplightning_my_own/my_own.py",
        "bplightning_my_own/my_own.yaml",
        "bplightning_my_own/reviews.jsonl",
    },
}
CLASS = {"strategy": "my_own:MyOwn", "task": "bplightning_my_own.my_own:MyOwn"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_is_written_passes_its_own_tests(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", kind, "my-own"])
    assert f"bplightning fit --{kind} my-own" in capsys.readouterr().out
    folder = Path("my-own")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == WRITTEN[kind]
    text = "\n".join((folder / file).read_text() for file in files)
    assert [spelling for spelling in OLD_SPELLINGS if spelling in text] == []
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {TEMPLATES[kind].group: {"my-own": CLASS[kind]}}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_templates_are_the_examples_whole(kind: str) -> None:
    example = EXAMPLES / f"custom_{kind}"
    made = ("__pycache__", ".egg-info", "build", ".pytest_cache")
    there = {
        str(path.relative_to(example)): path.read_text()
        for path in example.rglob("*")
        if path.is_file() and not any(part.endswith(made) for part in path.parts)
    }
    assert files_of(kind, TEMPLATES[kind].name) == there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("strategy", "My_Own"), r"the name 'My_Own' cannot be a strategy's: take lower-case words with dashes"),
        (("task", "1st"), r"the name '1st' cannot be a task's"),
        (("strategy", "lambda"), r"the name 'lambda' cannot be a strategy's"),
        (("strategy", "../up"), r"the name '../up' cannot be a strategy's"),
        (("strategy", "hybrid"), r"strategy 'hybrid' is registered already, as bplightning.strategies.hybrid:Hybrid"),
        (("task", "qa"), r"task 'qa' is registered already"),
        (("strategy", "torch"), r"'torch' would be the Python module 'torch', which exists already"),
        (("strategy", "there"), r"'there' exists in this folder already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_written(
    words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there").mkdir()
    assert message in refused("new", *words, capsys=capsys)
    assert [path.name for path in Path().iterdir()] == ["there"]
    assert not any(Path("there").iterdir())
