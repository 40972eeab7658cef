"""`fit` from Python is the command: the same options, the same errors, the same run."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import torch

import bplightning
from bplightning.cli.training import PruningCLI
from bplightning.errors import UserError
from bplightning.stages import pipeline

PYTHON_PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"

USER_FILE = """
import sys
from pathlib import Path
from tiny_task import TinyTask


class Tiny(TinyTask):
    def __init__(self):
        super().__init__(Path(), hidden_size=16, intermediate_size=32)

    def setup(self, stage):
        seen.append(list(sys.argv))


seen = []
"""
OPTIONS = {
    "task": "user_of_python.Tiny",
    "strategy": "hybrid",
    "strategy.granularity": {"attention": "4x4"},
    "strategy.window.final_warmup": 1,
    "model.learning_rate": 1e-3,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 8,
    "trainer.enable_progress_bar": False,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_of_python.py").write_text(USER_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_runs_as_the_command_does(here: Path) -> None:
    report = bplightning.fit(OPTIONS)
    run = here / "runs" / "tiny-hybrid" / "version_0"
    assert report == json.loads((run / "report.json").read_text())
    assert (run / "compact" / "model.safetensors").is_file()
    assert list((run / "checkpoints").iterdir())
    assert report is not None
    assert report["command"].startswith("python -m bplightning fit --task=user_of_python.Tiny --strategy=hybrid ")
    assert report["seed"] == 0


def test_it_leaves_everything_of_its_caller_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import user_of_python

    monkeypatch.setattr(sys, "argv", ["train.py", "--mine"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    options = copy.deepcopy(OPTIONS)
    environment, arguments, drawn = dict(os.environ), sys.argv, torch.get_rng_state()
    user_of_python.seen.clear()
    bplightning.fit(options)
    assert sys.argv is arguments
    assert user_of_python.seen
    assert all(seen == ["train.py", "--mine"] for seen in user_of_python.seen)  # while it runs, too
    assert dict(os.environ) == environment
    assert torch.equal(torch.get_rng_state(), drawn)
    assert options == OPTIONS


PROGRAM = """
import json, logging, sys, warnings
import bplightning


def state():
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    return [repr(warnings.filters), repr(logger.filters), sys.path]


import bplightning.training.module  # libraries add filters of their own when they are imported
import lightning.pytorch.cli, transformers, onnx
before = json.dumps(state())
bplightning.fit(json.loads(sys.argv[1]))
after = json.dumps(state())
assert after == before, f"{before} became {after}"
"""


def test_it_leaves_warnings_messages_and_search_path_as_they_were(here: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "program.py").write_text(PROGRAM)
    options = OPTIONS | {"trainer.fast_dev_run": True}
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(tiny_task.__file__).parent)])
    done = subprocess.run(
        [sys.executable, "elsewhere/program.py", json.dumps(options)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "hybird"}, "no strategy is called 'hybird'; there are: "),
        ({"strategy.regularisation": 3}, r"regularisation.*\(see bplightning fit --help\)"),
        ({"strategy.regularization": "much"}, "regularization"),
        ({"strategy.regularization": -1}, "regularization is -1; it must be 0 or more"),
    ],
)
def test_what_makes_no_sense_is_an_error_and_not_the_end(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bplightning.fit(OPTIONS | options)


# -- a command line of one's own -----------------------------------------------------------------------------------


def words(*more: str) -> list[str]:
    typed = {name: value if isinstance(value, str) else json.dumps(value) for name, value in OPTIONS.items()}
    return [*(f"--{name}={value}" for name, value in typed.items()), *more]


def test_the_command_line_on_the_python_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    section = PYTHON_PAGE.read_text().partition("\n## Your own command line\n")[2]
    (block,) = re.findall(r"^```python\n(.*?)^```$", section.partition("\n## ")[0], flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(block, PYTHON_PAGE.name, "exec"), names)
    report = names["MyCLI"](["fit", *words("--note", "of today:")]).run()
    assert f"of today: {report['metrics']['compact']}" in capsys.readouterr().out


def test_hooks_of_a_subclass_are_called_around_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(pipeline, "fit", lambda *_, **__: calls.append("pipeline"))

    class Own(PruningCLI):
        def before_instantiate_classes(self) -> None:  # without the base's
            self.settings.model.learning_rate = 0.25

        def before_fit(self) -> None:
            calls.append("before_fit")

        def fit(self) -> None:
            calls.append("fit")
            super().fit()

        def after_fit(self) -> None:
            calls.append("after_fit")

        def before_validate(self) -> None:
            calls.append("before_validate")

        def after_validate(self) -> None:
            calls.append(f"after_validate of {sorted(self.trainer.callback_metrics)[:1]}")

    made = Own(["fit", *words()])
    assert calls == []
    assert made.model.learning_rate == 0.25
    made.run()
    assert calls == ["before_fit", "fit", "pipeline", "after_fit"]
    calls.clear()
    Own(["validate", *words()]).run()
    assert calls == ["before_validate", "after_validate of ['val_accuracy']"]
