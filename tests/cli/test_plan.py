"""`plan` on the command line: fit's options, its own help, status, and nothing but the plan."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertForQuestionAnswering
from transformers.utils import logging as transformers_logging

from bplightning.cli import main
from bplightning.cli.plan import arranged, measuring_of, plan_parser, run_plan
from bplightning.errors import UserError
from bplightning.planning.measured import Measuring

USER_FILE = '''
from pathlib import Path

from lightning.pytorch import Callback
from tokenizers import Tokenizer, models
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from bplightning.masks.granularity import granularity_by_role, make_masks
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task


class TinyTask(Task):
    """A task of a user, whose data nobody may touch.

    Args:
        model: Folder.
        layers: Number of layers.
    """

    monitor = "score"
    embedded_recipe = Path(__file__).with_name("recipe.yaml")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{number}": number for number in range(50)}, unk_token="w0"))
    )

    def __init__(self, model: str | None = None, layers: int = 1) -> None:
        super().__init__()
        if layers == 0:
            raise ValueError("it was built")
        self.layers = layers

    def build_model(self):
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=self.layers, num_attention_heads=2, intermediate_size=32
        )
        return BertForQuestionAnswering(config)

    def load_model(self, folder):
        return AutoModelForQuestionAnswering.from_pretrained(folder)

    def logits(self, outputs, batch):
        raise AssertionError

    def build_metric(self):
        raise AssertionError

    def prepare_data(self):
        raise AssertionError

    train_dataloader = val_dataloader = prepare_data


class Writer(Callback):
    """Writes before anything runs."""

    def __init__(self) -> None:
        Path("written").touch()


class Blocks(PruningStrategy):
    """A strategy of a user.

    Args:
        block: Granularity of attention.
        warmups: Multiples of the warm-up that training must be longer than.
    """

    def __init__(self, block: str = "8x8", warmups: float = 0) -> None:
        super().__init__()
        self.granularity = granularity_by_role({"attention": block}, default={"feed_forward": "unit"})
        self.warmups = warmups

    def attach(self, layout):
        for name, mask in make_masks(layout, self.granularity):
            self.add_mask(name, mask, layout)

    def advance(self, progress):
        from bplightning.errors import UserError

        if self.warmups * progress.warmup_steps > progress.total_steps:
            raise UserError(f"{progress.warmup_steps} of {progress.total_steps} steps")
'''
USER = ["--task", "user_file.TinyTask", "--strategy", "user_file.Blocks"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_file.py").write_text(USER_FILE)
    (tmp_path / "recipe.yaml").write_text("task: {class_path: user_file.TinyTask, init_args: {layers: 2}}\n")
    monkeypatch.delitem(sys.modules, "user_file", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.startswith(str(tmp_path.parent))])
    monkeypatch.setattr(sys, "argv", ["bplightning"])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Any:
    """The plan of the given arguments, from ``--json``, and the status."""

    def of(*args: str) -> tuple[dict[str, Any], int]:
        status = 0
        try:
            run_plan([*args, "--json"])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert err == ""  # neither progress nor what loading reports
        return json.loads(out), status

    return of


def layers(made: dict[str, Any]) -> int:
    return 1 + max(group["layer"] for group in made["groups"])


def test_options_files_and_recipes_are_those_of_fit(planned: Any, here: Path) -> None:
    assert layers(planned(*USER)[0]) == 2, "the recipe of the task"
    assert layers(planned(*USER, "--task.model", "x")[0]) == 1, "no recipe where a model is named"
    assert layers(planned(*USER, "--task.layers", "3")[0]) == 3
    config = here / "config.yaml"
    strategy = {"class_path": "user_file.Blocks", "init_args": {"block": "4x2"}}
    task = {"class_path": "user_file.TinyTask", "init_args": {"layers": 4}}
    config.write_text(yaml.safe_dump({"task": task, "strategy": strategy, "trainer": {"max_epochs": 3}}))
    made, status = planned("--config", str(config), *USER)
    assert (layers(made), status) == (4, 0)
    assert made["roles"][0]["granularity"] == ["4x2"]
    assert (made["task"], made["strategy"]) == ("tiny-task", "blocks")


def test_nothing_is_written_and_only_the_plan_is_printed(
    here: Path, capsys: pytest.CaptureFixture[str], planned: Any
) -> None:
    before = set(here.rglob("*"))
    run_plan([*USER, "--trainer.callbacks+=user_file.Writer", "--trainer.accelerator", "gpu"])
    out, err = capsys.readouterr()
    assert set(here.rglob("*")) == before
    assert err == ""
    assert out.startswith("\nPlan: tiny-task, blocks")
    assert planned(*USER)[0]["model"]["class_name"] in out


def test_blocks_that_do_not_divide_end_with_status_1(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made, status = planned(*USER, "--strategy.block", "5x5")
    assert status == 1
    assert [problem["group"] for problem in made["problems"]] == ["encoder.0.self", "encoder.1.self"]
    with pytest.raises(SystemExit) as stop:
        run_plan([*USER, "--strategy.block", "5x5"])
    assert stop.value.code == 1
    assert "refused in 2 of 2 groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--model.warmup", "0.2"],
            "200000 of 1000000 steps (1,000,000 steps are assumed here, because no data is read.)",
        ),
        (["--model.warmup", "0.2", "--trainer.max_steps", "50"], "10 of 50 steps"),
        (["--model.warmup", "20", "--trainer.max_steps", "50"], "20 of 50 steps"),
        (["--model.warmup", "20"], None),
    ],
)
def test_a_schedule_without_a_step_is_a_problem(planned: Any, args: list[str], said: str | None) -> None:
    made, status = planned(*USER, "--strategy.warmups", "10", *args)
    assert [problem["message"] for problem in made["problems"]] == ([said] if said else [])
    assert status == (1 if said else 0)


def test_starts_from_what_fit_starts_from(planned: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    BertForQuestionAnswering(BertConfig(num_hidden_layers=5, **sizes)).save_pretrained(here / "dense")
    capsys.readouterr()
    given = [*USER, "--baseline", str(here / "dense")]
    assert layers(planned(*given)[0]) == 2
    assert layers(planned(*given, "--start", "baseline")[0]) == 5
    with pytest.raises(UserError, match="baseline 'nowhere' cannot be loaded"):
        run_plan([*USER, "--start", "baseline", "--baseline", "nowhere"])
    weights = here / "dense" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="dense' cannot be loaded: its weights are truncated or damaged"):
        run_plan([*given, "--start", "baseline"])


def test_no_checkpoint_is_read(planned: Any, here: Path) -> None:
    (here / "damaged.ckpt").write_text("hello")
    for file in ("damaged.ckpt", "absent.ckpt", "last"):
        assert layers(planned(*USER, "--ckpt_path", file)[0]) == 2


def test_measured_where_asked(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(*USER)[0]["measured"] is None
    quick = ["--measure.densities", "[0.5]", "--measure.batch_sizes", "[1]", "--measure.seconds", "0.01"]
    run_plan([*USER, "--json", "--measure", *quick, "--seed_everything", "7"])
    out, err = capsys.readouterr()
    found = json.loads(out)["measured"]
    assert [row["density"] for row in found["at"]] == [0.5]
    assert list(found["dense"]["speedup"]) == ["1x128"]
    assert (found["seed"], found["at"][0]["units"]) == (7, 32)
    assert "timing 3 models, 1x128" in err.splitlines()[-2]
    assert err.splitlines()[-1] == "100 %  done"
    run_plan([*USER, *quick])
    assert "Speed-up on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (["--measure"], {}),
        (["--measure", "true"], {}),
        (["--measure=true"], {}),
        (["--measure", "--json"], {}),
        (["--measure", "false"], None),
        ([], None),
        (["--measure.seconds", "2", "--measure", "true"], {"seconds": 2}),
        (["--measure", "--measure.densities=[0.5,1]"], {"densities": (0.5, 1)}),
        (["--measure", '{"lengths": [8]}'], {"lengths": (8,)}),
    ],
)
def test_the_ways_to_ask(args: list[str], asked: dict[str, Any] | None) -> None:
    settings = plan_parser().parse_args(arranged([*USER, *args]))
    assert measuring_of(settings) == (None if asked is None else Measuring(**asked))


@pytest.mark.parametrize("densities", ["[]", "[0]", "[0.5,1.1]", "[-0.5]", "[.nan]"])
def test_densities_are_checked_before_anything_is_built(densities: str) -> None:
    with pytest.raises(UserError, match=r"--measure.densities is .*each above 0 and at most 1, such as \[0.5,0.25\]"):
        run_plan([*USER, "--task.layers", "0", "--measure.densities", densities])


def test_a_measure_that_is_no_list_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *USER, "--measure.densities", "half"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "densities" in err


def test_where_fit_would_refuse_nothing_is_measured(planned: Any) -> None:
    made, status = planned(*USER, "--strategy.block", "5x5", "--measure")
    assert (made["measured"], status) == (None, 1)


def test_logging_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    lightning = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(lightning, "level", 17)
    transformers_logging.set_verbosity(18)
    try:
        run_plan(USER)
        assert (lightning.level, transformers_logging.get_verbosity()) == (17, 18)
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()


def test_mistakes_point_to_the_help_of_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *USER, "--strategy.nope", "1"])
    assert stop.value.code == 2
    assert "(see bplightning plan --help)" in capsys.readouterr().err


def test_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_plan(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: bplightning plan [options] Show what `fit` would prune")
    assert "--json Print the plan as JSON" in text
    for option in ("--config", "--task.max_length", "--strategy.regularization", "--model.warmup", "--baseline"):
        assert option in text


def test_an_engine_that_cannot_hold_the_model_ends_with_status_1(
    planned: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made, status = planned(*USER, "--for", "portable")
    assert (made["engine"]["holds"], status) == (True, 0)
    made, status = planned(*USER, "--for", "vllm", "--simplification.no_norm", "true")
    assert (made["engine"]["holds"], status) == (False, 1)
    with pytest.raises(SystemExit):
        run_plan([*USER, "--for", "vllm", "--simplification.no_norm", "true"])
    assert "For vllm: does not fit" in capsys.readouterr().out
    assert planned(*USER)[0]["engine"] is None
