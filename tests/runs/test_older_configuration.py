"""Runs of earlier versions are read in this version's spellings."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from pointing_task import make_run

from bplightning.cli.training import PruningCLI
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.plugins import trust
from bplightning.runs.build import build
from bplightning.runs.older_configuration import CLASS_PATHS, renewed
from bplightning.runs.reading import load_run
from bplightning.training.appending_csv_logger import AppendingCSVLogger
from bplightning.training.kept_checkpoints import LastCheckpoint
from bplightning.training.progress_lines import ProgressLines

OLD_RUN = Path(__file__).with_name("config_before_0_1_0.yaml")
"""As `fit --strategy cofi` wrote it before version 0.1.0, but for its folder."""


def strategy_of(class_path: str, **options: Any) -> Any:
    """The strategy that an older configuration names."""
    found = renewed({"strategy": {"class_path": class_path, "init_args": options}})["strategy"]
    return build({"strategy": found, "task": {"class_path": "qa"}}).module.strategy


def test_a_run_of_an_earlier_version_is_read() -> None:
    settings = {
        key: value
        for key, value in yaml.safe_load(OLD_RUN.read_text()).items()
        if key not in ("trainer", "seed_everything", "ckpt_path", "weights_only", "refill")
    }
    strategy: Any = build(renewed(settings)).module.strategy
    assert type(strategy).__name__ == "CoFi"
    assert strategy.target == Target(density=0.25)
    assert strategy.window == PruningWindow(initial_warmup=1.0, final_warmup=2.0)


def test_its_checkpoint_loads(tmp_path: Path) -> None:
    make_run(tmp_path)
    run, config = tmp_path / "run", tmp_path / "run" / "config.yaml"
    expected = load_run(run).state_dict()
    settings = yaml.safe_load(config.read_text())
    old = {"final_warmup": 2, "target_density": None, "target_flops_speedup": None, "freeze_masks": False}
    assert settings["strategy"]["init_args"] == {"window": {"final_warmup": 2}}
    config.write_text(yaml.safe_dump(settings | {"strategy": settings["strategy"] | {"init_args": old}}))
    found = load_run(run).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("name", "old", "asked"),
    [
        ("magnitude.Magnitude", {"density": 0.3}, Target(density=0.3)),
        ("hybrid.Hybrid", {"target_density": 0.3, "target_flops_speedup": None}, Target(density=0.3)),
        ("hybrid.Hybrid", {"target_flops_speedup": 2.5, "latency_table": None}, Target(flops=0.4)),
        ("hybrid.Hybrid", {"target_density": None, "regularization": 20.0}, Target()),
        ("post_training.PostTraining", {"target_flops": 0.7}, Target(flops=0.7)),
        ("post_training.PostTraining", {"target_flops": None}, Target(flops=0.5)),
        (
            "soft_movement.SoftMovement",
            {"target_latency_speedup": 2.0, "latency_table": "a.json"},
            Target(latency_speedup=2.0, latency_table="a.json"),
        ),
        ("ziplm.ZipLM", {"target_speedups": [1.5, 2.0]}, Target(latency_speedup=[1.5, 2.0])),
        ("ziplm.ZipLM", {"latency_table": "a.json"}, Target(latency_speedup=2.0, latency_table="a.json")),
        ("moe_pruner.MoEPruner", {"density": 0.75, "pattern": None}, Target(density=0.75)),
    ],
)
def test_every_old_target_is_known(name: str, old: dict[str, Any], asked: Target) -> None:
    assert strategy_of(f"bplightning.strategies.{name}", **old).target == asked


def test_the_flat_window_is_known() -> None:
    old = {"initial_warmup": 2.0, "final_warmup": 3.0, "freeze_masks": True}
    assert strategy_of("bplightning.strategies.movement.Movement", **old).window == PruningWindow(2.0, 3.0, True)


def test_what_is_of_this_version_stays_as_it_is() -> None:
    new = {
        "strategy": {"class_path": "bplightning.strategies.hybrid.Hybrid", "init_args": {"target": {"density": 0.5}}},
        "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}, None], "max_epochs": 3},
    }
    assert renewed(new) == new


def test_options_of_a_strategy_that_has_them_itself_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_density.py").write_text(
        "from bplightning import PruningStrategy\n"
        "class Own(PruningStrategy):\n"
        "    def __init__(self, density: float = 0.5) -> None:\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trust("with_density.Own")
    strategy = {"class_path": "with_density.Own", "init_args": {"density": 0.25}}
    assert renewed({"strategy": strategy}) == {"strategy": strategy}


@pytest.mark.parametrize(("old", "new"), CLASS_PATHS.items())
def test_old_class_paths_are_found(old: str, new: str) -> None:
    found = renewed({"trainer": {"callbacks": [{"class_path": old}, old], "logger": {"class_path": old}}})
    assert found == {"trainer": {"callbacks": [{"class_path": new}, new], "logger": {"class_path": new}}}
    module, _, name = new.rpartition(".")
    assert issubclass(getattr(import_module(module), name), Callback | Logger)


@pytest.mark.parametrize("above", [False, True], ids=["of the verb", "above the verbs"])
def test_fit_takes_a_configuration_with_old_class_paths(tmp_path: Path, above: bool) -> None:
    callbacks = [
        {"class_path": "bplightning.checkpoints.LastCheckpoint", "init_args": {"every_minutes": 3}},
        {"class_path": "bplightning.progress.ProgressLines"},
    ]
    logger = {"class_path": "bplightning.growing_log.GrowingCSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    config: dict[str, Any] = {
        "task": {"class_path": "bplightning.tasks.qa.QuestionAnswering"},
        "strategy": {"class_path": "bplightning.strategies.cofi.CoFi"},
        "trainer": {"accelerator": "cpu", "callbacks": callbacks, "logger": logger},
    }
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({"fit": config} if above else config))
    with isolate_rng():
        words = [f"--config={file}", "fit"] if above else ["fit", f"--config={file}"]
        trainer = PruningCLI(words).trainer
    assert [type(each) for each in trainer.checkpoint_callbacks] == [LastCheckpoint]
    assert any(isinstance(each, ProgressLines) for each in trainer.callbacks)  # type: ignore[attr-defined]
    assert isinstance(trainer.logger, AppendingCSVLogger)
