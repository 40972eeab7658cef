"""Every shipped configuration is one the program accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bplightning.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_read_whole(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={path}", "--print_config"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    read, given = yaml.safe_load(out), yaml.safe_load(path.read_text())
    for section in ("task", "strategy"):
        assert given[section]["init_args"].items() <= read[section]["init_args"].items()
    for section in ("model", "trainer"):
        assert given[section].items() <= read[section].items()
