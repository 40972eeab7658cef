"""Every command and block of Python that README and the documentation show runs, on stand-ins for what it names."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_ins
import torch
from lightning.pytorch import LightningModule
from thinned import thinned
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

import bplightning
from bplightning.cli import main
from bplightning.cli.training import PruningCLI
from bplightning.measuring import measure
from bplightning.plugins import STRATEGIES, TASKS, available, load
from bplightning.tasks.embedded import qa as qa_generated

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
EVALUATED = ["--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"]
TRAINED = [
    *EVALUATED,
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.num_sanity_val_steps=0",
    "--model.warmup=0",
]
QUICKLY = {
    "fit": TRAINED,
    "plan": TRAINED,
    "prune": EVALUATED,
    "benchmark": ["--seconds", "0.1"],
    "latency-table": ["--seconds", "0.1"],
}
"""Behind what a command says."""
SMALLER = {
    "--seeds 0,1,2": "--seeds 0",
    "--refill.max_epochs 3": "--refill.max_epochs 1",
    "--config my.yaml": f"--config my.yaml {' '.join(TRAINED)}",
    "eager,compile,onnx,onnx-int8": "eager",  # not every machine has a compiler
    "'[1.5,2,3,4]'": "'[1.1,1.2]'",  # of a small model not much can go
    "latency_speedup 2 ": "latency_speedup 1.2 ",
    "latency_speedup 1.5 ": "latency_speedup 1.2 ",
}
"""Said otherwise within a command."""
WRITES = {
    "fit": "report.json",
    "prune": "report.json",
    "compact": "model.safetensors",
    "export": "config.json",
    "latency-table": "*.json",
    "report": "report.html",
}
"""Verbs that leave files, and one that is then new; the others print, or write to ``--output``."""

pytestmark = [
    pytest.mark.timeout(300),
    # transformers' Trainer asks for pinned memory also where there is no accelerator.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:score_learning_rate is:UserWarning"),  # of recipes made for more than six steps
    pytest.mark.filterwarnings("ignore:.* tokens do not occur in the corpus:UserWarning"),  # a stand-in is a small one
]


def commands() -> list[tuple[str, str]]:
    """Page and command, of each line with a command of ours in an indented block."""
    found: dict[str, str] = {}
    for page in PAGES:
        for line in re.findall(r"^ {4}(\S.*)$", re.sub(r"(\\|(?<=\|))\n", " ", page.read_text()), flags=re.M):
            if re.search(r"(?:^|\| *)(bplightning|python cli\.py) ", line):
                found.setdefault(line, page.name)
    return [(page, line) for line, page in found.items()]


def parsed(line: str) -> tuple[str, list[str]]:
    """The verb and the options of a command, smaller."""
    for long, short in SMALLER.items():
        line = line.replace(long, short)
    words = shlex.split(line.rpartition("|")[2].partition(" > ")[0], comments=True)
    verb, *options = words[2 if words[0] == "python" else 1 :]
    return verb, options + QUICKLY.get(verb, [])


LONG = ("--trainer.strategy ddp", "--seeds 0,1,2", "--backends eager,onnx,onnx-int8")
"""Parts of commands that only `make matrix` runs."""


def kind(line: str) -> object:
    """What two trainings may have in common: strategy, task, configuration and processes. Else it is the command."""
    verb, options = parsed(line)
    values = {
        name: value for name, value in itertools.pairwise(options) if name in ("--strategy", "--task", "--config")
    }
    return (frozenset(values.items()), "ddp" in options) if verb == "fit" else line


def first_of_each_kind() -> list[tuple[str, str]]:
    """Of trainings that are alike the first; all commands that do not train."""
    return [*{kind(line): (page, line) for page, line in reversed(commands())}.values()]


def run_here() -> list[tuple[str, str]]:
    """Those of them that `make test` runs; what the others do is tried elsewhere in smaller steps."""
    return [each for each in first_of_each_kind() if not any(part in each[1] for part in LONG)]


def benchmark_commands() -> list[tuple[str, str]]:
    """Page and command of each benchmark, which are not run here: they take minutes to hours."""
    lines = {
        line: page.name
        for page in PAGES
        for line in re.findall(r"^ {4}(python benchmarks/.*)$", page.read_text(), flags=re.M)
    }
    return [(page, line) for line, page in lines.items()]


def blocks() -> list[tuple[str, str]]:
    """Page and Python, of each block in no section that another file runs (test_examples.py)."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = re.sub(r"^## (Fit from Python|Add a strategy)\n.*?(?=^## |\Z)", "", page.read_text(), flags=re.M | re.S)
        for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S):
            found.setdefault(block, page.name)
    return [(page, block) for block, page in found.items()]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the commands name, and two runs; models are timed briefly, generated data is little."""
    folder = tmp_path_factory.mktemp("shelf")
    stand_ins.make(folder)
    latency, brief = measure.latency, {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "latency", lambda *args, **options: latency(*args, **options | brief))
        patch.setitem(qa_generated.DEFAULT_SIZES, "train", 64)
        patch.setitem(qa_generated.DEFAULT_SIZES, "validation", 16)
        patch.chdir(folder)
        for strategy in ("hybrid", "movement"):
            main(["fit", "--config", "my.yaml", "--strategy", strategy, "--baseline", "train", *TRAINED])
        lines = [
            "--task.model=bert-base-uncased",
            "--task.train_file=train.csv",
            "--task.validation_file=validation.csv",
        ]
        main(["fit", "--strategy", "hybrid", "--task", "classification", *lines, *TRAINED])
        for model in ("DENSE_FOLDER", "FINE_TUNED_FOLDER"):
            main(["latency-table", model, f"{model}.json", *QUICKLY["latency-table"]])
        (folder / "RUN").symlink_to(folder / "runs" / "qa-hybrid" / "version_0")
        yield folder


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: all of the shelf, and room for what is made."""
    for each in shelf.iterdir():
        (tmp_path / each.name).symlink_to(each)
    (tmp_path / "runs").unlink()
    shutil.copytree(shelf / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(*folders: Path) -> set[tuple[Path, int]]:
    """The files in folders, each with the time it was written."""
    there = (path for folder in folders for path in folder.rglob("*"))
    return {(path, path.stat().st_mtime_ns) for path in there if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize(("page", "line"), thinned(commands(), run_here()))
def test_a_command_in_the_documentation_does_something(
    page: str,
    line: str,
    here: Path,
    shelf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said, (verb, options) = line.rpartition("|")[0], parsed(line)
    if verb != "latency-table":
        model = "FINE_TUNED_FOLDER" if "FINE_TUNED_FOLDER" in options else "DENSE_FOLDER"
        (here / "table.json").symlink_to(f"{model}.json")
    text = said.strip().removeprefix("echo ").strip("'")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    before = files(here, shelf)  # what RUN stands for lies on the shelf
    if "ddp" in options:  # Lightning starts the program anew, once a process
        program = Path(sys.executable).with_name("bplightning")
        subprocess.run([program, verb, *options, "--trainer.devices=2"], check=True)
    else:
        main([verb, *options])
    new = [path for path, _ in files(here, shelf) - before]
    if verb in WRITES:
        assert any(path.match(WRITES[verb]) for path in new)
    else:
        assert capfd.readouterr().out.strip() or new


@pytest.mark.parametrize(
    ("page", "line"), [each for each in commands() if parsed(each[1])[0] == "fit" and each not in run_here()]
)
def test_a_training_like_another_is_built(page: str, line: str, here: Path) -> None:
    """What it names is there, and its options are accepted; `make matrix` runs it too."""
    verb, options = parsed(line)
    (here / "table.json").symlink_to("DENSE_FOLDER.json")
    assert PruningCLI([verb, *options]).built.module.strategy is not None


def saved_models(page: str) -> dict[str, Any]:
    """What a block may name: a model that was pruned, or a mixture of experts, and batches for that."""
    ids = torch.arange(32).reshape(2, 16)
    return {
        "bplightning": bplightning,
        "model": AutoModelForCausalLM.from_pretrained("FOLDER")
        if page == "moe-pruner.md"
        else AutoModelForQuestionAnswering.from_pretrained("runs/qa-hybrid/version_0/compact"),
        "batches": [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}],
    }


class Classifier(LightningModule):
    """A user's own module, around a transformers model."""

    def __init__(self, net: PreTrainedModel) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-5)


def loop() -> dict[str, Any]:
    """What a block that trains may name: a model, its tokenizer, and data in the form of each loop."""
    model = AutoModelForSequenceClassification.from_pretrained("FINE_TUNED_FOLDER").train()
    rows = [{"input_ids": torch.arange(16) + row, "labels": torch.tensor(row % 2)} for row in range(64)]
    dataloader = DataLoader(rows, batch_size=2)
    return {
        "model": model,
        "module": Classifier(model),
        "tokenizer": AutoTokenizer.from_pretrained("FINE_TUNED_FOLDER"),
        "train_dataset": rows,
        "dataloader": dataloader,
        "batches": list(dataloader),
    }


@pytest.mark.parametrize(("page", "block"), blocks())
def test_python_in_the_documentation_runs(page: str, block: str, here: Path) -> None:
    names = loop() if page == "python-api.md" else saved_models(page)
    exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize(("page", "line"), benchmark_commands())
def test_a_benchmark_in_the_documentation_has_the_options_shown(page: str, line: str) -> None:
    _, script, *options = shlex.split(line)
    source = (ROOT / script).read_text()
    assert all(f'"{option}"' in source for option in options if option.startswith("--"))


def test_the_page_of_options_has_every_plugin() -> None:
    text = (DOCS / "options.md").read_text()
    for group in (STRATEGIES, TASKS):
        for name in available(group):
            cls = load(group, name)
            if cls.__module__.startswith("bplightning."):
                assert f".. autoclass:: {cls.__module__}.{cls.__qualname__}\n" in text


def test_every_strategy_has_a_page_of_its_method() -> None:
    titles = " ".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    for name in set(available(STRATEGIES)) - {"dense"}:
        assert f"--strategy {name}" in titles or f"| `{name}` |" in titles


def test_the_python_page_has_every_public_name() -> None:
    text = (DOCS / "python-api.md").read_text()
    for home, names in (
        ("bplightning", bplightning.__all__),
        ("bplightning.testing", ["StrategyContract", "TaskContract"]),
    ):
        missing = [name for name in names if not re.search(rf"^\.\. auto\w+:: {home}\.{name}$", text, flags=re.M)]
        assert not missing


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([a-z0-9/-]+)$", (DOCS / "index.md").read_text(), flags=re.M))
    assert listed == {f"{page.relative_to(DOCS).with_suffix('')}" for page in DOCS.rglob("*.md")} - {"index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_has_a_label_and_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "code", page.read_text(), flags=re.M | re.S)
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text):
        assert label.strip() or target.startswith("images/"), target
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            leads_to = page.parent / file if file else page
            assert leads_to.exists(), target
            assert not anchor or anchor in headings(leads_to), target


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert bplightning.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_recipe_is_on_the_page_that_lists_them() -> None:
    text = (DOCS / "reproduce.md").read_text()
    recipes = {path.name for path in (ROOT / "configs" / "paper").glob("*.yaml")}
    assert recipes == set(re.findall(r"`([\w-]+\.yaml)`", text))
