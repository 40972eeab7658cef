"""Refill: fine-tuning the compact model, whose zeros may grow back or are held."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_families import padded_inputs, tiny
from tiny_task import TinyTask, trainer

from bplightning.cli import main
from bplightning.compaction.exact_compaction import compact
from bplightning.contracts.window import PruningWindow
from bplightning.distillation.distillation import Distillation
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.reporting.report import load_report
from bplightning.stages import pipeline
from bplightning.stages.refill import Refill, refill, remove_partial_heads
from bplightning.stages.request import RunRequest
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure real models, but briefly."""
    latency = measure.latency
    monkeypatch.setattr(
        measure, "latency", lambda *args, **call: latency(*args, **call, seconds=0.0, block_ms=0.0, min_rounds=2)
    )


def stage(folder: Path, epochs: int | None) -> Trainer:
    return trainer(folder, logger=False, default_root_dir=folder, max_epochs=epochs, enable_checkpointing=False)


def fitted(folder: Path, settings: Refill | None) -> tuple[TinyTask, PruningModule, Any, Path]:
    torch.manual_seed(3)
    task = TinyTask(folder, max_position_embeddings=128)
    tiles = {"attention": "16x16"}
    window = PruningWindow(final_warmup=2)
    strategy = Hybrid(window=window, granularity=tiles, regularization=60, score_learning_rate=2.75)
    module = PruningModule(task, strategy, learning_rate=1e-3)
    run = trainer(folder)
    report = pipeline.fit(run, module, RunRequest(refill=settings), stage_trainer=stage)
    return task, module, report, Path(str(run.log_dir))


def zeros_and_shapes(model: Any) -> tuple[int, list[torch.Size]]:
    weights = [member.weight(model) for member in PrunableLayout.of(model).members]
    return sum(int((weight == 0).sum()) for weight in weights), [weight.shape for weight in weights]


@pytest.mark.parametrize("hold", [False, True])
def test_a_refill_changes_no_shape_and_lets_zeros_grow_unless_they_are_held(tmp_path: Path, hold: bool) -> None:
    task, module, report, run = fitted(tmp_path, Refill(max_epochs=2, hold_masks=hold))
    before, after = compact(module.model), task.load_model(run / "compact")
    zeros, shapes = zeros_and_shapes(before)
    assert zeros > 0
    left, same_shapes = zeros_and_shapes(after)
    assert same_shapes == shapes
    assert left == (zeros if hold else 0)
    assert not torch.equal(before.qa_outputs.weight, after.qa_outputs.weight)
    assert report["refill"] == {
        **{"max_epochs": 2, "learning_rate": 1e-3, "hold_masks": hold, "heads": "exact"},
        **{"heads_removed": 0, "logit_difference": None},
    }
    assert report["equivalence"]["masked_compact"] < 1e-4
    assert load_report(run / "report.json") == report


def test_without_refill_the_compact_model_is_the_masked_one(tmp_path: Path) -> None:
    task, module, report, run = fitted(tmp_path, Refill())
    assert report["refill"] is None
    before, after = compact(module.model), task.load_model(run / "compact")
    assert torch.equal(before.qa_outputs.weight, after.qa_outputs.weight)


def test_the_refill_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    pruned = PruningModule(TinyTask(tmp_path), Hybrid(), learning_rate=1e-3)
    model = pruned.task.build_model()
    before = copy.deepcopy(model)
    after = refill(stage(tmp_path, 1), pruned, model, Refill(max_epochs=1, learning_rate=1e-9))
    inputs = padded_inputs("right")
    assert (after(**inputs).start_logits - before.eval()(**inputs).start_logits).abs().max() < 1e-4


def test_the_refill_learns_from_the_runs_teacher(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    teacher, student = task.build_model(), task.build_model()
    with torch.no_grad():
        teacher.qa_outputs.weight.neg_()
    teacher.save_pretrained(tmp_path / "teacher")
    task.tokenizer.save_pretrained(tmp_path / "teacher")
    learning = Distillation(str(tmp_path / "teacher"), alpha_ce=0.0, alpha_teacher=1.0)
    pruned = PruningModule(task, Hybrid(), learning_rate=5e-3, distillation=learning)
    inputs = padded_inputs("right")

    def distance() -> float:
        with torch.no_grad():
            return float(
                (student.eval()(**inputs).start_logits - teacher.eval()(**inputs).start_logits).square().mean()
            )

    before = distance()
    refill(stage(tmp_path, 4), pruned, student, Refill(max_epochs=4))
    assert distance() < before / 2


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("projection", ["query", "key"])
def test_the_papers_rule_removes_a_head_of_whose_query_or_key_nothing_is_left(family: str, projection: str) -> None:
    model = tiny(family)
    group = PrunableLayout.of(model).attention[1]
    member, size = getattr(group, projection), group.head_size
    rows = size * (group.heads // group.kv_heads if projection == "query" else 1)
    with torch.no_grad():
        member.weight(model)[rows : 2 * rows] = 0
    assert PrunableLayout.of(compact(model)).attention[1].kv_heads == group.kv_heads  # exactly, it still does something
    assert remove_partial_heads(model) == [(group.name, 1)]
    left = [each.kv_heads for each in PrunableLayout.of(compact(model)).attention]
    assert left == [each.kv_heads - (each.name == group.name) for each in PrunableLayout.of(model).attention]
    assert remove_partial_heads(model) == []


def test_the_report_says_what_the_papers_rule_changed(tmp_path: Path) -> None:
    _, module, report, _ = fitted(tmp_path, Refill(max_epochs=1, heads="any"))
    exact = sum(group.heads for group in PrunableLayout.of(compact(module.model)).attention)
    lost = len(remove_partial_heads(copy.deepcopy(module.model)))
    assert report["refill"]["heads_removed"] == lost > 0
    assert report["refill"]["logit_difference"] > 0
    assert report["heads"]["kept"] == exact - lost


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": -1}, "refill's max_epochs is -1; it must be 0, for none, or more"),
        ({"max_epochs": 1, "learning_rate": 0.0}, "refill's learning_rate is 0; it must be above 0"),
        ({"max_epochs": 1, "warmup": -1.0}, "refill's warmup is -1; it must be 0 or more"),
        ({"max_epochs": 1, "heads": "all"}, "refill's heads is 'all'; it must be 'exact', or 'any'"),
        (
            {"hold_masks": True, "heads": "any"},
            "refill's hold_masks and heads would do nothing, since its max_epochs is 0, which is no refill: give "
            "epochs, or leave them out (heads: exact, where a file says any).",
        ),
    ],
)
def test_what_a_refill_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Refill(**settings)


def test_compact_takes_the_refilled_weights_and_a_checkpoint_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filled_task.py").write_text(
        "from pathlib import Path\n\nfrom tiny_task import TinyTask\n\n\n"
        "class FilledTask(TinyTask):\n    def __init__(self):\n"
        "        super().__init__(Path(), max_position_embeddings=128)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--task", "filled_task.FilledTask", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    words += [
        "--strategy.granularity={attention: 16x16}",
        "--strategy.window.final_warmup=2",
        "--model.learning_rate=1e-3",
    ]
    main(["fit", *words, "--refill.max_epochs=1"])
    run = next(Path("runs").glob("*/version_0"))
    main(["compact", str(run), "again"])
    assert Path("again/model.safetensors").read_bytes() == (run / "compact" / "model.safetensors").read_bytes()
    assert load_report("again/report.json")["refill"] == load_report(run / "report.json")["refill"]
    main(["compact", str(run), "before", "--checkpoint", "last"])
    assert Path("before/model.safetensors").read_bytes() != (run / "compact" / "model.safetensors").read_bytes()
    assert load_report("before/report.json")["refill"] is None
