"""The short help: it fits the eye, and what it says is so."""

from __future__ import annotations

import re

import pytest

from bplightning.cli import main
from bplightning.cli.completion import training_parsers
from bplightning.cli.help_pages import PAGES, page
from bplightning.plugins import STRATEGIES, TASKS, available, load
from bplightning.runs.parser import PluginParser, class_parser


@pytest.fixture(scope="module")
def parsers() -> dict[str, PluginParser]:
    return training_parsers()


@pytest.mark.parametrize("verb", PAGES)
def test_it_is_a_page_of_a_narrow_terminal(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = page(verb).splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 80


def test_it_lists_every_plugin_by_its_name() -> None:
    for name in (*available(TASKS), *available(STRATEGIES)):
        assert re.search(rf"^  {name}  +\w", page("fit"), re.MULTILINE)


@pytest.mark.parametrize("verb", PAGES)
def test_every_option_is_one(verb: str, parsers: dict[str, PluginParser]) -> None:
    known = {f"--{option}" for option in parsers[verb].known_options()}
    known |= {action.option_strings[0] for action in class_parser(load(TASKS, "classification"), "task")._actions[1:]}
    assert [option for group in PAGES[verb].values() for option in group if option not in known] == []


@pytest.mark.parametrize("verb", PAGES)
def test_every_default_is_the_one(verb: str, parsers: dict[str, PluginParser]) -> None:
    parser = parsers[verb]
    for option, (_, line) in ((name, told) for group in PAGES[verb].values() for name, told in group.items()):
        said, key = re.search(r"Default: (\S+)\.$", line), option.removeprefix("--")
        if said is None:
            continue
        default = parser.plugins[key].default if key in parser.plugins else parser.get_default(key)
        assert said[1] in (
            str(default),
            f"{default:.0e}".replace("e-0", "e-") if isinstance(default, float) else "none",
        ), option


@pytest.mark.parametrize("verb", PAGES)
@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--strategy", "hybrid", "--help"]])
def test_it_is_printed(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([verb, *words])
    assert capsys.readouterr().out == page(verb)
