"""Every command that README and the documentation show is one that the program takes; pages name all there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bplightning import compare_cli
from bplightning.cli import TRAINING_VERBS, VERBS, build_parser, main
from bplightning.plugins import STRATEGIES, TASKS, available, load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Page and command, of each command of ours in an indented block."""
    found = []
    for page in PAGES:
        for line in re.findall(r"^ {4}(\S.*)$", re.sub(r"(\\|(?<=\|))\n", " ", page.read_text()), flags=re.M):
            if ours := re.search(r"(?:^|\| *)((?:bplightning|python cli\.py) .*)", line):
                found.append((page.name, ours[1]))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_in_the_documentation_is_understood(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("recipe.yaml", "configs/paper/squad-v1-hybrid.yaml"), comments=True)
    verb, *options = words[2 if words[0] == "python" else 1 :]
    if verb in VERBS:
        build_parser().parse_args([verb, *options])
        return
    if verb == "compare":
        own, fit = compare_cli._split(options)
        compare_cli.compare_parser().parse_args(own)
        verb, options = "fit", [word for word in fit if word not in ("--config", "my.yaml")]
    assert verb in {*TRAINING_VERBS, "plan", "prune"}
    if verb == "plan":  # takes what `fit` takes, and says what to measure
        verb, options = "fit", [word for word in options if not word.startswith("--measure")]
    if any("my_file." in word for word in options):
        pytest.skip("of a file of the reader's own, which tests/test_examples.py writes and runs")
    with pytest.raises(SystemExit) as stopped:
        main([verb, *options, "--print_config"])
    assert stopped.value.code in (0, None), capsys.readouterr().err


def test_the_page_of_options_has_every_plugin() -> None:
    text = (ROOT / "docs" / "options.md").read_text()
    for group in (STRATEGIES, TASKS):
        for name in available(group):
            cls = load(group, name)
            if cls.__module__.startswith("bplightning."):
                assert f".. autoclass:: {cls.__module__}.{cls.__qualname__}\n" in text


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([a-z-]+)$", (ROOT / "docs" / "index.md").read_text(), flags=re.M))
    assert listed == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_every_recipe_is_on_the_page_that_lists_them() -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text()
    recipes = {path.name for path in (ROOT / "configs" / "paper").glob("*.yaml")}
    assert recipes == set(re.findall(r"`([\w-]+\.yaml)`", text))
