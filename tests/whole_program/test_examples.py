"""The examples, and the code in the Python API page and CONTRIBUTING, run as they are, in processes of their own."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from programs import PYTEST, said_by
from tiny_squad import NILE, example, save_tokenizer
from transformers import BertConfig, BertForQuestionAnswering

ROOT = Path(__file__).parents[2]
PYTHON_PAGE = "docs/python-api.md"
LOOPS = ("in_my_lightning_module", "in_the_transformers_trainer", "in_a_bare_loop")

pytestmark = pytest.mark.timeout(300)


def bplightning(*words: str, cwd: Path) -> str:
    return said_by(ROOT / "cli.py", *words, cwd=cwd, variables={"PYTHONPATH": str(ROOT / "tests" / "support")})


def blocks(document: str, section: str) -> list[str]:
    """The Python of a section, block by block."""
    text = (ROOT / document).read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_ones_own_ends_with_a_compact_model(tmp_path: Path, name: str) -> None:
    said_by(ROOT / "examples" / f"{name}.py", "compact", "--steps", "12", cwd=tmp_path)
    reload = (
        f"import runpy; runpy.run_path({str(ROOT / 'examples' / name)!r} + '.py'); "  # nothing but what it imports
        "import bplightning; from transformers import AutoModelForSequenceClassification as Auto;"
        "print(Auto.from_pretrained('compact').num_parameters())"
    )
    plan = json.loads((tmp_path / "compact" / "compaction_plan.json").read_text())
    assert any(len(group["kept"]) < group["total"] for group in plan["groups"])
    assert int(said_by(reload, cwd=tmp_path).splitlines()[-1]) < 963_330  # of the model it began with
    assert (tmp_path / "compact" / "tokenizer.json").is_file()


USER_FILE = """
from pathlib import Path
from tiny_task import TinyTask


class Tiny(TinyTask):
    def __init__(self):
        super().__init__(Path(), hidden_size=32, intermediate_size=32)
"""


def test_a_strategy_written_by_the_book_works_from_its_file(tmp_path: Path) -> None:
    strategy, test = blocks("CONTRIBUTING.md", "Add a strategy")
    (tmp_path / "my_file.py").write_text(strategy)
    (tmp_path / "test_my_file.py").write_text(test)
    (tmp_path / "user_tiny.py").write_text(USER_FILE)
    assert re.search(r"\d passed", said_by(PYTEST, "test_my_file.py", "-p", "no:cacheprovider", cwd=tmp_path))
    options = ["--strategy", "my_file.MyStrategy", "--strategy.target.density", "0.25", "--task", "user_tiny.Tiny"]
    bplightning("fit", *options, "--trainer.max_steps=40", "--trainer.accelerator=cpu", cwd=tmp_path)
    report = json.loads((tmp_path / "runs" / "tiny-my-strategy" / "version_0" / "report.json").read_text())
    assert report["density"]["by_role"]["feed_forward"] == 0.25
    assert "density" in bplightning("fit", "--strategy.help", "my_file.MyStrategy", cwd=tmp_path)


def test_python_is_as_short_as_the_command() -> None:
    text = (ROOT / PYTHON_PAGE).read_text().partition("\n## Fit from Python\n")[2]
    command = re.search(r"^    (bplightning fit (?:.*\\\n)*.*)$", text, flags=re.M)
    assert command is not None
    _, _, *words = shlex.split(command[1].replace("\\\n", " "))
    typed = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    (call,) = (
        node for node in ast.walk(ast.parse(blocks(PYTHON_PAGE, "Fit from Python")[0])) if isinstance(node, ast.Dict)
    )
    assert {name: str(value) for name, value in ast.literal_eval(call).items()} == typed


@pytest.mark.parametrize("block", [0, 1])
def test_the_python_pages_fit_runs(tmp_path: Path, block: int) -> None:
    model, data = tmp_path / "model", tmp_path / "squad"
    model.mkdir()
    save_tokenizer(model)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    BertForQuestionAnswering(BertConfig(vocab_size=512, max_position_embeddings=512, **sizes)).save_pretrained(model)
    data.mkdir()
    for split in ("train", "validation"):
        rows = [example(f"{split}-{n}", NILE, "How long is the Nile?", "6650 km") for n in range(4)]
        Dataset.from_list(rows).to_parquet(data / f"{split}.parquet")
    code = blocks(PYTHON_PAGE, "Fit from Python")[block]
    for stands, stand_in in (("bert-base-uncased", model), ("rajpurkar/squad", data)):
        assert stands in code
        code = code.replace(stands, str(stand_in))
    (tmp_path / "script.py").write_text(code + "\nprint(sorted(report['metrics']['compact']))\n")
    assert said_by(tmp_path / "script.py", cwd=tmp_path).splitlines()[-1] == "['exact_match', 'f1']"
    assert len(list(tmp_path.rglob("compact/model.safetensors"))) == 1
