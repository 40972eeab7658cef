"""Pruning without training: the order of hooks, what is calibrated on, what comes out, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_task import TinyTask, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForQuestionAnswering

from bplightning.cli import main
from bplightning.compaction.narrow_stream import clear_dimensions, narrowing_covers, set_narrowing
from bplightning.compaction.skipped_sublayers import skip
from bplightning.contracts.capabilities import OneShot, Prepared
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.io.ending import Interrupted
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import stream_width
from bplightning.masks.granularity import make_masks
from bplightning.masks.masking import Mask
from bplightning.measuring import measure
from bplightning.reporting.report import load_report
from bplightning.stages import one_shot, pipeline
from bplightning.stages.calibration_set import CalibrationSet
from bplightning.stages.request import RunRequest
from bplightning.strategies.movement import Movement
from bplightning.strategies.one_shot_taylor import OneShotTaylor
from bplightning.strategies.post_training.post_training import PostTraining
from bplightning.strategies.wanda import Wanda
from bplightning.strategies.ziplm.ziplm import ZipLM
from bplightning.training.module import PruningModule


class Noting(OneShot, Prepared):
    """Notes what is asked of it, and drops the first head and the first ten units of each layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []

    def attach(self, layout: PrunableLayout) -> None:
        self.noted.append("attach")
        for name, mask in make_masks(layout, {"attention": "head", "feed_forward": "unit"}, scores=False):
            self.add_mask(name, mask, layout)

    def prepare(self, dense: Any) -> None:
        self.noted.append(("prepare", dense().training))

    def calibrate(self, model: Any, batches: Iterable[dict[str, Tensor]], loss_fn: Any) -> None:
        losses = [[loss_fn(model(**batch), batch).item() for batch in batches] for _ in range(2)]
        self.noted.append(("calibrate", model.training, losses))

    def advance(self, progress: Progress) -> None:
        self.noted.append(("advance", progress.step == progress.total_steps))
        for mask in self.all_masks:
            mask.kept[: 1 if mask.role == "attention" else 10] = False


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure real models, but briefly."""
    latency = measure.latency
    monkeypatch.setattr(
        measure, "latency", lambda *args, **call: latency(*args, **call, seconds=0.0, block_ms=0.0, min_rounds=2)
    )


def test_it_calibrates_prunes_and_reports(tmp_path: Path) -> None:
    task = TinyTask(tmp_path, max_position_embeddings=128)
    module, run = PruningModule(task, Noting()), trainer(tmp_path)
    before = {name: value.clone() for name, value in task.build_model().state_dict().items()}
    returned = one_shot.prune(run, module, calibration_examples=24)
    attached, prepared, (_, training, losses), advanced, *rest = module.strategy.noted
    assert (attached, prepared, advanced, rest) == ("attach", ("prepare", False), ("advance", True), [])
    assert training is False
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    folder = Path(str(run.log_dir))
    report = load_report(folder / "report.json")
    assert returned is not None
    assert (report["heads"]["kept"], report["heads"]["total"]) == (2, 4)
    assert report["metrics"]["masked"] == report["metrics"]["compact"]
    assert (folder / "report.html").is_file()
    dense = task.load_model(folder / "baseline" / "model").state_dict()  # the model that was pruned, as it was
    assert all(torch.equal(value, before[name]) for name, value in dense.items())
    compact = task.load_model(folder / "compact")
    assert sum(value.numel() for value in compact.parameters()) == report["parameters"]["compact"]["all"]


class Narrower(OneShot):
    """Drops the first three dimensions of the residual stream, and skips the first attention."""

    def attach(self, layout: PrunableLayout) -> None:
        self.add_mask("stream", Mask("stream", narrowing_covers(layout), (stream_width(layout), 1), 1), layout)

    def advance(self, progress: Progress) -> None:
        self.all_masks[0].kept[:3] = False

    def harden(self, layout: PrunableLayout) -> None:
        kept_H = self.all_masks[0].kept.flatten().clone()
        set_narrowing(layout.model, narrows=True)
        super().harden(layout)
        clear_dimensions(layout, kept_H)
        skip(layout.model, layout.attention[0])


def test_a_report_says_how_wide_the_model_is_left_and_what_is_skipped(tmp_path: Path) -> None:
    task, run = TinyTask(tmp_path, max_position_embeddings=128), trainer(tmp_path)
    report = one_shot.prune(run, PruningModule(task, Narrower()), RunRequest(baseline="none"))
    assert report is not None
    width = task.build_model().config.hidden_size
    assert report["stream"] == {"kept": width - 3, "total": width}
    assert report["skipped"] == ["encoder.0.self"]
    tiles = {digit for pattern in report["patterns"] for text in pattern["projections"].values() for digit in text}
    assert tiles <= {"9", " "}
    assert "skips 1 sub-layer" in (Path(str(run.log_dir)) / "compact" / "README.md").read_text()


def test_the_choice_of_examples_follows_from_the_seed(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)

    def chosen(seed: int, examples: int = 20) -> list[list[int]]:
        batches = CalibrationSet(task, examples=examples, seed=seed)
        first, second = ([row for batch in batches for row in batch["input_ids"].tolist()] for _ in range(2))
        assert first == second
        return first

    everything = task.train_dataloader().dataset
    assert chosen(0) == chosen(0) != chosen(1)
    assert len(chosen(0)) == 20
    assert sorted(chosen(0, examples=500)) == sorted(row["input_ids"].tolist() for row in everything)


def test_examples_of_like_length_stand_together(tmp_path: Path) -> None:
    class Ragged(TinyTask):
        def train_dataloader(self) -> Any:
            data = [{"input_ids": [7] * length} for length in (2, 9, 3, 8, 9, 2)]
            collate = lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])}  # noqa: E731
            return torch.utils.data.DataLoader(data, batch_size=1, collate_fn=collate)

    batches = CalibrationSet(Ragged(tmp_path), examples=6, seed=0)
    assert [batch["input_ids"].shape[1] for batch in batches] == [9, 9, 8, 3, 2, 2]


class Loading(TinyTask):
    """A task with a loader of one's own."""

    loader: Any = None

    def train_dataloader(self) -> Any:
        return self.loader


def test_examples_are_chosen_from_any_loader_that_has_examples_and_a_batch_size(tmp_path: Path) -> None:
    task = Loading(tmp_path)
    data = [{"input_ids": torch.tensor([index]), "text": str(index)} for index in range(12)]
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(data), batch_size=4, drop_last=False)
    task.loader = DataLoader(data, batch_sampler=sampler)  # type: ignore[arg-type]
    assert [
        {name: len(value) for name, value in batch.items()} for batch in CalibrationSet(task, examples=6, seed=0)
    ] == [{"input_ids": 4}, {"input_ids": 2}]


class Stream(IterableDataset[Any]):
    """Examples that come one after the other."""

    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Stream(), batch_size=4), "can be chosen from .* DataLoader of Stream: let it give"),
        (DataLoader([1, 2], batch_size=None), "can be chosen from .* DataLoader of list: let it give"),  # type: ignore[arg-type]
        ([], "can be chosen from .* list of NoneType: let it give"),
        (DataLoader([], batch_size=4), "training set is empty"),  # type: ignore[arg-type]
    ],
)
def test_a_loader_with_nothing_to_choose_from_is_refused(tmp_path: Path, loader: Any, message: str) -> None:
    task = Loading(tmp_path)
    task.loader = loader
    with pytest.raises(UserError, match=message):
        CalibrationSet(task, examples=2, seed=0)


def test_what_learns_in_training_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    with pytest.raises(UserError, match=r"strategy 'movement' learns in training.*`fit`.*magnitude"):
        one_shot.prune(trainer(tmp_path), PruningModule(task, Movement()))
    with pytest.raises(UserError, match=r"strategy 'noting' prunes without training: use `bplightning prune`"):
        pipeline.fit(trainer(tmp_path), PruningModule(task, Noting()))


def test_the_baseline_of_a_run_that_was_stopped_is_not_overwritten(tmp_path: Path) -> None:
    task, run = TinyTask(tmp_path), trainer(tmp_path)
    (Path(str(run.log_dir)) / "baseline" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"baseline/model' is there already: choose another trainer\.default_root_dir"):
        one_shot.prune(run, PruningModule(task, Noting()))


@pytest.mark.parametrize(
    ("options", "examples", "message"),
    [
        ({}, 0, "calibration_examples is 0; it must be 1 or more"),
        ({"baseline": "train"}, None, "baseline is 'train', and `prune` trains nothing"),
        ({"baseline": "nowhere"}, None, "baseline 'nowhere' is not the folder of a saved model"),
    ],
)
def test_bad_values_are_refused_before_data_is_read(
    tmp_path: Path, options: Any, examples: int | None, message: str
) -> None:
    task = TinyTask(tmp_path)
    task.prepare_data = lambda: pytest.fail("data is read")  # type: ignore[method-assign]
    with pytest.raises(UserError, match=message):
        one_shot.prune(
            trainer(tmp_path), PruningModule(task, Noting()), RunRequest(**options), calibration_examples=examples
        )


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, run = TinyTask(tmp_path), trainer(tmp_path)
    task.prepare_data = lambda: pytest.fail("data is read")  # type: ignore[method-assign]
    monkeypatch.setattr(type(run), "world_size", property(lambda self: 2))
    with pytest.raises(UserError, match=r"runs in one process, and the trainer has 2: give --trainer\.devices 1\."):
        one_shot.prune(run, PruningModule(task, Noting()))


@pytest.mark.parametrize(
    ("strategy", "smaller"),
    [
        (PostTraining(target=Target(flops=0.5)), True),
        (OneShotTaylor(target=Target(flops=0.5)), True),
        (Wanda(granularity={"attention": "head", "feed_forward": "unit"}), True),
        (Wanda(), False),
    ],
    ids=["post-training", "one-shot-taylor", "wanda", "wanda-elements"],
)
def test_what_is_pruned_loads_with_transformers_as_it_was(
    strategy: PruningStrategy, smaller: bool, tmp_path: Path
) -> None:
    task, run = TinyTask(tmp_path, max_position_embeddings=128), trainer(tmp_path)
    module = PruningModule(task, strategy)
    report = one_shot.prune(run, module, RunRequest(baseline="none"), calibration_examples=16)
    assert report is not None
    assert report["density"]["encoder_linear"] < 1
    compact, dense = (report["parameters"][name]["encoder_linear"] for name in ("compact", "dense"))  # type: ignore[literal-required]
    assert compact < dense or not smaller
    loaded = AutoModelForQuestionAnswering.from_pretrained(Path(str(run.log_dir)) / "compact")
    assert sum(value.numel() for value in loaded.parameters()) == report["parameters"]["compact"]["all"]
    inputs = next(iter(task.val_dataloader()))
    with torch.no_grad():
        masked, again = (model(**inputs) for model in (module.model.eval(), loaded.eval()))
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(again[name], masked[name], rtol=1e-4, atol=1e-5)


def test_a_strategy_says_how_many_examples_and_that_it_prunes_once(tmp_path: Path) -> None:
    class Asks(Noting):
        def examples_at_once(self) -> int:
            return 16

    task = TinyTask(tmp_path, max_position_embeddings=128)
    for given, batches in ((None, 2), (40, 5)):
        module = PruningModule(task, Asks())
        one_shot.prune(trainer(tmp_path), module, RunRequest(baseline="none"), calibration_examples=given)
        assert [len(noted[2][0]) for noted in module.strategy.noted if noted[0] == "calibrate"] == [batches]
    assert ZipLM(calibration_examples=100).examples_at_once() == 100
    with pytest.raises(
        UserError, match=r"latency_speedup is \[1\.5, 2\], .* give one, in one call of `prune` for each"
    ):
        one_shot.prune(trainer(tmp_path), PruningModule(task, ZipLM(target=Target(latency_speedup=[1.5, 2.0]))))


USER_FILE = """
from pathlib import Path
from tiny_task import TinyTask


class Tiny(TinyTask):
    def __init__(self):
        super().__init__(Path(), max_position_embeddings=128)
"""


def test_the_verb_has_a_run_folder_like_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_tiny.py").write_text(USER_FILE)
    monkeypatch.delitem(sys.modules, "user_tiny", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["--strategy", "magnitude", "--strategy.target.density", "0.5", "--trainer.accelerator", "cpu"]
    main(["prune", "--task", "user_tiny.Tiny", *words, "--strategy.granularity", "{attention: head}"])
    folder = tmp_path / "runs" / "tiny-magnitude" / "version_0"
    report = load_report(folder / "report.json")
    assert report["density"]["encoder_linear"] == pytest.approx(0.5)  # at the schedule's end, whatever its warm-ups
    assert (report["heads"]["kept"], report["heads"]["total"]) == (2, 4)
    assert report["metrics"]["dense"] is not None
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["calibration_examples"] is None
    assert "model" not in settings  # nothing of training
    with pytest.raises(SystemExit):  # nothing is left of what is refused
        main(["prune", "--task", "user_tiny.Tiny", "--strategy", "moe-pruner", "--strategy.experts", "2", *words[4:]])
    assert not list(folder.parent.with_name("tiny-moe-pruner").glob("*"))
    main(["prune", "--config", str(folder / "config.yaml"), "--baseline", "none"])
    again = load_report(folder.with_name("version_1") / "report.json")
    assert again["heads"] == report["heads"]
    assert again["metrics"]["compact"] == report["metrics"]["compact"]


def test_what_is_stopped_leaves_nothing_and_what_is_killed_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user_tiny.py").write_text(USER_FILE)
    monkeypatch.delitem(sys.modules, "user_tiny", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["prune", "--task", "user_tiny.Tiny", "--strategy", "magnitude", "--strategy.target.density", "0.5"]
    words += ["--trainer.accelerator", "cpu", "--strategy.granularity", "{attention: head}"]
    own = tmp_path / "own[/b]"  # what rich takes for its markup
    own.mkdir(parents=True)
    (own / "mine.txt").touch()

    def stop(*args: Any, **call: Any) -> None:
        run = next(tmp_path.glob("**/config.yaml")).parent
        assert (run / "baseline" / "model" / "config.json").exists()
        assert not (run / "compact").exists()  # it appears with its report
        assert (run / ".compact.part" / "config.json").exists()
        raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "latency", stop)
        for where in ([], ["--trainer.logger", "false", "--trainer.default_root_dir", "own[/b]"]):
            with pytest.raises(Interrupted):
                main([*words, *where])
            assert not list(tmp_path.glob("runs/*/*"))
            assert [path.name for path in own.iterdir()] == ["mine.txt"]
    (own / "config.yaml").write_text("calibration_examples: null\n")
    (own / "baseline" / "model").mkdir(parents=True)
    (own / ".compact.part").mkdir()
    main([*words, "--trainer.logger", "false", "--trainer.default_root_dir", "own[/b]"])
    assert {"report.json", "report.html", "compact", "baseline", "config.yaml"} <= {path.name for path in own.iterdir()}
    assert not list(own.glob(".*"))
    with pytest.raises(SystemExit):  # a whole one is not replaced
        main([*words, "--trainer.logger", "false", "--trainer.default_root_dir", "own[/b]"])
