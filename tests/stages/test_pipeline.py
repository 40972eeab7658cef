"""From training to a compact folder and a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_families import padded_inputs
from tiny_task import TinyTask, trainer

from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.io.run_folder import run_of
from bplightning.measuring import measure
from bplightning.reporting.report import Report, load_report
from bplightning.stages import pipeline
from bplightning.stages.request import RunRequest
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.kept_checkpoints import LastCheckpoint
from bplightning.training.module import PruningModule


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure real models, but briefly."""
    latency = measure.latency
    monkeypatch.setattr(
        measure, "latency", lambda *args, **call: latency(*args, **call, seconds=0.0, block_ms=0.0, min_rounds=2)
    )


def pruning(folder: Path, task: TinyTask) -> PruningModule:
    return PruningModule(task, Hybrid(window=PruningWindow(final_warmup=2)), learning_rate=1e-3)


def test_fit_leaves_a_compact_folder_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = TinyTask(tmp_path, max_position_embeddings=128)
    module = pruning(tmp_path, task)
    run = trainer(tmp_path)
    returned = pipeline.fit(run, module)
    folder = Path(str(run.log_dir))
    report = load_report(folder / "report.json")
    assert report == json.loads(json.dumps(returned))
    assert report["metrics"]["dense"] is None
    assert report["metrics"]["masked"] == report["metrics"]["compact"]
    assert report["evaluation"] == {"examples": 20}
    assert report["density"]["encoder_linear"] < 1
    assert report["parameters"]["compact"]["all"] < report["parameters"]["dense"]["all"]
    assert set(report["speedup"] or {}) == {"1x128", "8x128"}
    assert report["equivalence"]["masked_compact"] < 1e-4
    assert report["world_size"] == 1
    assert report["monitor"] == {"metric": "accuracy", "mode": "max"}
    assert {pattern["name"] for pattern in report["patterns"]} == {"encoder.0.self", "encoder.1.self"}
    assert "Scores of attention over training" in (folder / "report.html").read_text()
    card = ModelCard.load(folder / "compact" / "README.md")
    assert card.data.pipeline_tag == "question-answering"
    assert [result.metric_value for result in card.data.eval_results or []] == list(
        report["metrics"]["compact"].values()
    )
    assert "compact_accuracy" in (folder / "metrics.csv").read_text()

    compact = task.load_model(folder / "compact")
    inputs = padded_inputs("right")
    difference = compact(**inputs).start_logits - module.model.eval()(**inputs).start_logits
    assert difference.abs().max() < 1e-4
    assert sum(value.numel() for value in compact.parameters()) == report["parameters"]["compact"]["all"]
    assert (folder / "compact" / "vocab.txt").exists() or (folder / "compact" / "tokenizer.json").exists()
    assert "speed-up 8x128" in capsys.readouterr().out


def test_a_baseline_is_trained_first_and_does_not_change_the_pruned_run(tmp_path: Path) -> None:
    states = []
    for baseline in ("none", "train"):
        torch.manual_seed(3)
        task = TinyTask(tmp_path, max_position_embeddings=128)
        module = pruning(tmp_path, task)
        run = trainer(tmp_path, name=baseline)
        report = pipeline.fit(
            run,
            module,
            RunRequest(baseline=baseline),
            stage_trainer=lambda folder, _: trainer(folder, logger=False, default_root_dir=folder),
        )
        states.append(module.model.state_dict())
    assert report is not None
    assert report["metrics"]["dense"] is not None
    assert (report["bytes_on_disk"]["dense"] or 0) > report["bytes_on_disk"]["compact"]
    dense = task.load_model(Path(str(run.log_dir)) / "baseline" / "model")
    assert all((value != 0).all() for value in dense.state_dict().values() if value.ndim > 1)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_baseline_folder_is_checked_before_training(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    run = trainer(tmp_path)
    with pytest.raises(
        UserError, match=r"baseline '.*nowhere' is not the folder of a saved model .* give such a folder"
    ):
        pipeline.fit(run, pruning(tmp_path, task), RunRequest(baseline=str(tmp_path / "nowhere")))
    assert run.global_step == 0
    assert not Path(str(run.log_dir)).exists()


def test_pruning_can_start_from_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TinyTask(tmp_path, max_position_embeddings=128)
    baseline = tmp_path / "dense"
    dense = task.build_model()
    dense.qa_outputs.bias.data.fill_(7.0)
    dense.save_pretrained(baseline)
    module = PruningModule(task, Hybrid(), learning_rate=1e-9)
    pipeline.fit(trainer(tmp_path, max_steps=2), module, RunRequest(baseline=str(baseline), start="baseline"))
    assert module.model.qa_outputs.bias.tolist() == pytest.approx([7.0, 7.0])


def test_there_must_be_a_baseline_to_start_from(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    with pytest.raises(UserError, match="--start baseline needs a baseline: pass --baseline train or a folder"):
        pipeline.fit(trainer(tmp_path), pruning(tmp_path, task), RunRequest(start="baseline"))


def test_a_run_that_has_ended_says_that_it_is_not_quantized_any_more(tmp_path: Path) -> None:
    task = TinyTask(tmp_path, max_position_embeddings=128)

    def run(quantize: str | None) -> Report | None:
        of = trainer(tmp_path, logger=False, default_root_dir=tmp_path, max_steps=2)
        return pipeline.fit(of, pruning(tmp_path, task), RunRequest(quantize=quantize, resume=True))

    first = run(None)
    with pytest.warns(UserWarning, match=r"nothing of int8, .* `bplightning export .* OUT --quantize int8` makes"):
        assert run("int8") == first


def test_a_run_that_was_killed_next_to_its_compact_model_ends_with_every_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's folder appears after the note on it; a lost note is found out again, and a damaged one named."""
    task = TinyTask(tmp_path, max_position_embeddings=128)

    def run() -> Report | None:
        options: dict[str, Any] = {"logger": False, "default_root_dir": tmp_path, "callbacks": [LastCheckpoint()]}
        of = trainer(tmp_path, max_steps=2, **options)
        return pipeline.fit(of, pruning(tmp_path, task), RunRequest(resume=True))

    notes = tmp_path / "unfinished.json"
    with monkeypatch.context() as patch:
        patch.setattr("bplightning.io.files.os.rename", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "compact").exists()
    assert json.loads(notes.read_text())["compact_reloaded"]["absolute"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(measure, "latency", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (tmp_path / "compact" / "config.json").exists()
    for content in ("{", "[1]", '{"dense": 3}', "\xff"):
        notes.write_text(content)
        with pytest.raises(
            UserError, match=r"unfinished\.json' is damaged \(.*\): remove it and repeat the command; what"
        ):
            run()
    notes.unlink()
    report = run()
    assert report is not None
    assert report["equivalence"]["compact_reloaded"] == 0
    assert report["equivalence"]["masked_compact"] is not None
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "report.json").unlink()
    (tmp_path / "compact" / "config.json").write_text("{")
    notes.write_text('{"compact_reloaded": {}}')
    with pytest.raises(UserError, match=r"compact' cannot be loaded: .* Or remove that folder and repeat the command"):
        run()
    shutil.rmtree(tmp_path / "compact")
    (tmp_path / "compact").mkdir()  # an empty one is none
    assert run() is not None


def raising(error: BaseException) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        raise error

    return call


def test_a_folder_that_holds_a_result_is_refused_before_training(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    (tmp_path / "compact").mkdir()
    run = trainer(tmp_path, logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match=r"compact' is there already: choose another trainer\.default_root_dir"):
        pipeline.fit(run, pruning(tmp_path, task))
    assert run.global_step == 0


def test_a_checkpoint_at_the_root_is_of_no_run() -> None:
    assert run_of(Path("/last.ckpt")) == Path("/")
    assert run_of(Path("/run/checkpoints/last.ckpt")) == Path("/run")


def test_a_fast_dev_run_leaves_nothing(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    run = trainer(tmp_path, fast_dev_run=2, default_root_dir=tmp_path)
    assert pipeline.fit(run, pruning(tmp_path, task)) is None
    assert not (tmp_path / "compact").exists()


def test_without_validation_there_is_a_report_without_scores(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    report = pipeline.fit(trainer(tmp_path, limit_val_batches=0), pruning(tmp_path, task))
    assert report is not None
    assert [report["flops"]["shape"], *(report["speedup"] or {})] == ["8x40", "1x40", "8x40"]  # it has but 40 positions
    assert report["metrics"]["compact"] == {}
    assert report["evaluation"] is None


def test_the_report_says_what_the_snap_to_a_target_changed(tmp_path: Path) -> None:
    task = TinyTask(tmp_path, max_position_embeddings=128)
    strategy = Hybrid(
        target=Target(density=0.4), window=PruningWindow(final_warmup=2), granularity={"attention": "16x16"}
    )
    module = PruningModule(task, strategy, learning_rate=1e-3)
    report = pipeline.fit(trainer(tmp_path), module)
    assert report is not None
    snap = report["snap"]
    assert snap is not None
    assert (snap["kind"], snap["target"]) == ("density", 0.4)
    assert snap["after"] == pytest.approx(report["density"]["encoder_linear"], abs=1e-3)
    assert snap["metrics_before"] is not None
    assert set(snap["metrics_before"]) == {"accuracy"}
