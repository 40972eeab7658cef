"""Bad input, as a user gives it: one line that names thing, value, rule and remedy; status 2; nothing half-written.

docs/troubleshooting.md lists the same cases. What happens inside training (NaN, signals, other checkpoints) is tested
with the module it concerns.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from programs import Program

from bplightning import compact, save_compact
from bplightning.cli import main
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.tasks.qa import QuestionAnswering
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL

ROOT = Path(__file__).parents[2]
EXAMPLE = {
    "id": "1",
    "context": "Anna lives in Dinmouth.",
    "question": "Who lives in Dinmouth?",
    "answers": {"text": ["Anna"], "answer_start": [0]},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with one good data file."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.jsonl", EXAMPLE)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact folder: half of the embedded model's units taken away."""
    task = QuestionAnswering()
    model = task.build_model().eval()
    with torch.no_grad():
        for group in PrunableLayout.of(model).feed_forward:
            group.down.weight(model)[:, ::2] = 0
    folder = tmp_path_factory.mktemp("saved") / "compact"
    save_compact(compact(model), folder, task.tokenizer)
    return folder


@pytest.fixture
def folder(whole: Path, here: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(whole, here / "broken"))


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of error to the given arguments, after which there is no result in any run's folder."""

    def of(*args: str | Path) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        assert stop.value.code == 2
        err = capfd.readouterr().err
        assert "Traceback" not in err
        assert err.count("bplightning: error: ") == 1
        assert not list(Path.cwd().glob("runs/**/report.json"))
        assert not list(Path.cwd().glob("runs/**/compact"))
        return err.rpartition("bplightning: error: ")[2]

    return of


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit_on(file: str) -> list[str]:
    return ["fit", f"--task.model={EMBEDDED_MODEL}", f"--task.train_file={file}", "--task.validation_file=good.jsonl"]


# -- data --------------------------------------------------------------------------------------------------------------


def test_missing_file(refused: Callable[..., str]) -> None:
    assert re.match(r"Data file 'absent.jsonl' does not exist \(looked in .*\): give", refused(*fit_on("absent.jsonl")))


def test_wrong_columns(refused: Callable[..., str], here: Path) -> None:
    write(here / "bad.jsonl", {"id": "1", "passage": "a", "question": "b", "answers": EXAMPLE["answers"]})
    assert re.match(r"'bad.jsonl' lacks the columns \['context'\]; it has .*Rename", refused(*fit_on("bad.jsonl")))


def test_empty_set(refused: Callable[..., str], here: Path) -> None:
    (here / "bad.json").write_text('{"data": []}')
    assert refused(*fit_on("bad.json")).startswith("'bad.json' holds no examples: give")


def test_answer_not_in_context(refused: Callable[..., str], here: Path) -> None:
    write(here / "bad.jsonl", {**EXAMPLE, "answers": {"text": ["Otto"], "answer_start": [0]}})
    said = refused(*fit_on("bad.jsonl"))
    assert re.match(
        r"Example '1': the answer 'Otto' is not in its context at answer_start 0 .*: correct the offset", said
    )


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", ["0", "1.5"])
def test_density_out_of_range(refused: Callable[..., str], density: str) -> None:
    said = refused("fit", "--strategy", "movement", "--strategy.target.density", density)
    assert f"target.density is {density}; it is the fraction of weights to keep and must be in (0, 1]" in said


def test_a_block_that_does_not_divide(refused: Callable[..., str]) -> None:
    said = refused(*fit_on("good.jsonl"), "--strategy.granularity.attention", "48x48")
    assert "block 48x48 does not divide bert.encoder.layer.0.attention.self.query.weight of shape 128 x 128" in said
    assert "Choose one that does" in said


# -- saved models ------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> str:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return "its weights are truncated or damaged"


def widen(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["compaction"]["widths"]["encoder.0.feed_forward"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    return "its weights are of other shapes than its config.json gives, listed above"


def widen_beyond(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["compaction"]["widths"]["encoder.0.feed_forward"] = 10_000
    (folder / "config.json").write_text(json.dumps(config))
    return "config.json's field 'compaction' must keep 0 to 512 units of 'encoder.0.feed_forward', got 10000"


def remove_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "no file named model.safetensors"


@pytest.mark.parametrize("breaks", [truncate, widen, widen_beyond, remove_weights])
@pytest.mark.parametrize("use", ["model", "baseline", "validate", "predict"])
def test_a_broken_model_folder(refused: Callable[..., str], folder: Path, breaks: Callable, use: str) -> None:
    reason = breaks(folder)
    data = ["--task.train_file=good.jsonl", "--task.validation_file=good.jsonl"]
    (folder.parent / "in.jsonl").write_text(json.dumps(EXAMPLE) + "\n")
    said = {
        "model": lambda: refused("fit", f"--task.model={folder}", *data),
        "baseline": lambda: refused(*fit_on("good.jsonl"), f"--baseline={folder}"),
        "validate": lambda: refused("validate", f"--task.model={EMBEDDED_MODEL}", *data, f"--ckpt_path={folder}"),
        "predict": lambda: refused("predict", folder, "--input=in.jsonl", "--task=qa"),
    }[use]()
    assert re.search(f"'{folder}' cannot be loaded: .*{re.escape(reason)}", said)


# -- the machine -------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, whose weights break off half-way until it is asked for ``/mend``."""

    cut = True

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if self.path == "/mend":
            type(self).cut = False
        file = EMBEDDED_MODEL / self.path.rpartition("/")[2]
        if "/resolve/" not in self.path or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        for name, value in {
            "ETag": f'"{file.name}"',
            "X-Repo-Commit": "0" * 40,
            "Content-Length": len(content),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            broken_off = type(self).cut and file.suffix == ".safetensors"
            self.wfile.write(content[: len(content) // 2] if broken_off else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


TWICE = """
import os, sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen
from bplightning.cli import main
command = ["plan", "--task.model", "me/tiny", "--task.validation_file", "good.jsonl"]
try:
    main(command)
except SystemExit as stop:
    assert stop.code == 2
assert not list(Path("cache").rglob("*.safetensors"))
try:
    urlopen(os.environ["HF_ENDPOINT"] + "/mend")
except HTTPError:
    print("MENDED", file=sys.stderr)
main(command)
"""


def test_an_interrupted_download(hub: str, here: Path) -> None:
    """In an interpreter of its own: where the hub is, is read on import."""
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(here / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=here,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, _ = done.stderr.split("MENDED")
    assert "Traceback" not in first
    said = first.rpartition("bplightning: error: ")[2]
    assert "'me/tiny' cannot be loaded" in said
    assert "an interrupted download continues when" in said
    assert "BertForQuestionAnswering" in done.stdout


NO_FILE_BEYOND_300_KB = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from bplightning.cli import main
main()
"""
"""As on a full disk: a write fails half-way."""


def test_a_full_disk_while_saving(here: Path, whole: Path) -> None:
    program = Program(
        NO_FILE_BEYOND_300_KB,
        "fit",
        f"--task.model={whole}",
        "--task.train_file=good.jsonl",
        "--task.validation_file=good.jsonl",
        "--trainer.max_steps=1",
        "--trainer.enable_checkpointing=false",
        "--strategy=dense",
        cwd=here,
    )
    assert program.end() == 2, program.said
    assert "Traceback" not in program.said
    said = program.said.rpartition("bplightning: error: ")[2]
    assert "compact: File too large" in said
    assert "name another place, or raise the limit" in said
    left = [path.name for path in here.rglob("*") if path.suffix == ".safetensors" or path.name.startswith(".compact")]
    assert left == []
    assert not list(here.glob("runs/*/*/compact"))
