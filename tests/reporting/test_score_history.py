"""How scores spread, recorded while a network is pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_task import TinyTask, trainer

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.layout.groups import Member
from bplightning.masks.masking import Cover, Mask
from bplightning.reporting.score_history import BINS, SCORES_FILE, ScoreHistory, histograms, read_scores
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.magnitude import Magnitude
from bplightning.training.module import PruningModule


def masked(*scores: torch.Tensor) -> PruningStrategy:
    strategy = PruningStrategy()
    for place, values_RC in enumerate(scores):
        mask = Mask("attention", (Cover(Member("")),), (values_RC.shape[0], values_RC.shape[1]), values_RC.numel())
        assert mask.scores is not None
        mask.scores.data.copy_(values_RC)
        mask.set_grid(values_RC > 0)
        strategy.masks[str(place)] = mask
    return strategy


def test_entries_are_counted_once_where_they_lie_and_by_whether_they_are_kept() -> None:
    found = histograms(masked(torch.tensor([[-4.0, 0.0]]), torch.tensor([[4.0], [3.99], [0.15]])))["attention"]
    assert (found["low"], found["high"]) == (-4.0, 4.0)
    assert {place: count for place, count in enumerate(found["kept"]) if count} == {20: 1, BINS - 1: 2}
    assert {place: count for place, count in enumerate(found["pruned"]) if count} == {0: 1, 20: 1}


def test_scores_that_are_all_alike_are_counted() -> None:
    found = histograms(masked(torch.zeros(3, 2)))["attention"]
    assert (found["low"], found["high"], sum(found["pruned"]), sum(found["kept"])) == (0.0, 0.0, 6, 0)


def test_a_run_leaves_a_line_a_validation_and_changes_nothing_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for name in ("with", "without"):
        torch.manual_seed(3)
        task = TinyTask(tmp_path)
        module = PruningModule(task, Hybrid(window=PruningWindow(final_warmup=2)), learning_rate=1e-3)
        run = trainer(tmp_path, name=name, num_sanity_val_steps=1)
        if name == "without":
            monkeypatch.setattr(ScoreHistory, "on_validation_end", lambda *_: None)
        run.fit(module, datamodule=task)
        states.append(module.state_dict())
        folder = Path(str(run.log_dir))
        assert (folder / SCORES_FILE).exists() == (name == "with")
        if name == "with":
            lines = read_scores(folder / SCORES_FILE)
            assert [line["step"] for line in lines] == [12, 24]
            assert set(lines[-1]["roles"]) == {"attention", "feed_forward"}
            masks = [mask for mask in module.strategy.all_masks if mask.role == "attention"]
            last = lines[-1]["roles"]["attention"]
            assert sum(last["kept"]) == sum(int(mask.kept.sum()) for mask in masks)
            assert sum(last["kept"]) + sum(last["pruned"]) == sum(mask.kept.numel() for mask in masks)
            assert last["high"] == max(float(mask.scores.detach().max()) for mask in masks if mask.scores is not None)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("options", [{"logger": False}, {"fast_dev_run": True}])
def test_a_run_that_leaves_no_log_leaves_no_scores(
    tmp_path: Path, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = TinyTask(tmp_path)
    trainer(tmp_path, **options, enable_checkpointing=False).fit(
        PruningModule(task, Hybrid(window=PruningWindow(final_warmup=2))), task
    )
    assert not list(tmp_path.rglob(SCORES_FILE))


def test_a_strategy_without_scores_leaves_none(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    run = trainer(tmp_path)
    run.fit(PruningModule(task, Magnitude(target=Target(density=0.5), window=PruningWindow(final_warmup=2))), task)
    assert not (Path(str(run.log_dir)) / SCORES_FILE).exists()


def test_half_a_line_of_a_process_that_was_killed_costs_that_line_only(tmp_path: Path) -> None:
    file = tmp_path / SCORES_FILE
    line = {"step": 5, "roles": {}}
    file.write_text(json.dumps(line) + '\n{"step": 10, "rol')
    history = ScoreHistory()
    for step in (10, 10, 15):
        history._append(file, {"step": step, "roles": {}})
    assert [json.loads(text)["step"] for text in file.read_text().splitlines()] == [5, 10, 10, 15]
    assert [line["step"] for line in read_scores(file)] == [5, 10, 15]
    again = {"low": 0.0, "high": 1.0, "pruned": [1], "kept": [2]}
    history._append(file, {"step": 10, "roles": {"attention": again}})  # trained once more, from a checkpoint before
    assert read_scores(file)[1]["roles"] == {"attention": again}
    assert read_scores(tmp_path / "absent") == []
