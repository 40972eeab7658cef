"""Which checkpoints a run keeps: none is "best" that is not pruned, and there is always a last one."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_task import TinyTask

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.checkpoint_files import find_checkpoint
from bplightning.training.kept_checkpoints import LastCheckpoint, PrunedCheckpoint
from bplightning.training.module import PruningModule

SCORES = [90.0, 80.0, 70.0, 75.0, 60.0, 65.0]
"""What validations find, four of them in an epoch: the best one comes before anything is pruned."""


class Scripted(TinyTask):
    """Validations find what the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, hidden_size=16, intermediate_size=32)
        self.scores = [*SCORES, 0.0, 0.0]

    def build_metric(self) -> Any:
        metric = super().build_metric()
        score = self.scores[min(self.trainer.global_step // 3, 8) - 1] if self.trainer else 0.0
        metric.compute = lambda: {"accuracy": torch.tensor(score)}
        return metric


def hybrid(final_warmup: float = 0) -> Hybrid:
    return Hybrid(window=PruningWindow(initial_warmup=0, final_warmup=final_warmup), granularity={"attention": "4x4"})


def run(folder: Path, *callbacks: Callback, resume: Path | None = None, **options: Any) -> Trainer:
    task = options.pop("task", None) or Scripted(folder)
    # Of 24 steps the schedule leaves the last 12: its target is reached at step 12, the fourth validation.
    strategy = options.pop("strategy", None) or hybrid(final_warmup=3)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": CSVLogger(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "val_check_interval": 3,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    trainer = Trainer(callbacks=list(callbacks), **(settings | options))
    module = PruningModule(task, strategy, learning_rate=1e-3, warmup=4)
    trainer.fit(module, datamodule=task, ckpt_path=resume)
    return trainer


def best(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("best*"))


def test_best_is_never_a_model_that_is_not_pruned_yet(tmp_path: Path) -> None:
    keep = PrunedCheckpoint("val_accuracy")
    trainer = run(tmp_path, keep)
    assert float(keep.best_model_score or 0) == 75
    assert best(Path(str(trainer.log_dir))) == ["best-step=12.ckpt"]
    text = (Path(str(trainer.log_dir)) / "metrics.csv").read_text().splitlines()
    place = text[0].split(",").index("val_target_reached")
    assert [row.split(",")[place] for row in text if row.split(",")[place]][1:] == ["0.0"] * 3 + ["1.0"] * 5


def test_the_least_can_be_best(tmp_path: Path) -> None:
    keep = PrunedCheckpoint("val_accuracy", mode="min")
    run(tmp_path, keep, max_steps=18)
    assert float(keep.best_model_score or 0) == 60


def test_a_resumed_run_goes_on_from_the_best_so_far(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 16:
                raise ConnectionError

    first = PrunedCheckpoint("val_accuracy")
    with pytest.raises(ConnectionError):
        run(tmp_path, first, LastCheckpoint(), Stop())
    keep = PrunedCheckpoint("val_accuracy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The dirpath")
        again = run(tmp_path, keep, LastCheckpoint(), resume=Path(first.best_model_path).with_name("last.ckpt"))
    assert float(keep.best_model_score or 0) == 75
    assert Path(first.best_model_path).is_file()  # nothing of the interrupted run is removed
    assert best(Path(str(again.log_dir))) == ["best-step=12.ckpt"]
    assert Path(keep.best_model_path) == Path(str(again.log_dir)) / "checkpoints" / "best-step=12.ckpt"


def test_a_resumed_run_says_that_the_best_so_far_is_gone(tmp_path: Path) -> None:
    first = PrunedCheckpoint("val_accuracy")
    run(tmp_path, first, LastCheckpoint(), max_steps=18)
    Path(first.best_model_path).unlink()
    keep = PrunedCheckpoint("val_accuracy")
    with pytest.warns(
        UserWarning, match=r"best-step=\d+\.ckpt', the best checkpoint so far, does not exist: only later"
    ):
        run(tmp_path, keep, resume=Path(first.best_model_path).with_name("last.ckpt"))
    assert Path(keep.best_model_path).name == "best-step=21.ckpt"


def test_the_best_of_several_that_are_kept(tmp_path: Path) -> None:
    trainer = run(tmp_path, PrunedCheckpoint("val_accuracy", save_top_k=3), LastCheckpoint())
    folder = Path(str(trainer.log_dir))
    assert len(best(folder)) == 3
    assert find_checkpoint(folder / "checkpoints", "best") == folder / "checkpoints" / "best-step=12.ckpt"
    with pytest.raises(UserError, match=r"save_top_k is 0; it must be 1 or more"):
        PrunedCheckpoint("val_accuracy", save_top_k=0)


def test_last_is_a_second_name_of_the_best_that_was_written_just_now(tmp_path: Path) -> None:
    same: list[bool] = []

    class Look(ModelCheckpoint):  # after the others
        def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
            folder = Path(str(trainer.log_dir)) / "checkpoints"
            found = [path for path in folder.glob("best*") if path.samefile(folder / "last.ckpt")]
            saved = torch.load(folder / "last.ckpt", weights_only=True)
            assert saved["global_step"] == trainer.global_step
            same.append(bool(found))

    run(tmp_path, PrunedCheckpoint("val_accuracy"), LastCheckpoint(), Look(save_top_k=0))
    assert same == [False] * 3 + [True] + [False] * 4  # it is written once, and is not changed by what comes later


def test_last_is_written_after_each_validation_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    class Look(ModelCheckpoint):  # checkpoints come last of all callbacks, in their order
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            file = Path(str(trainer.log_dir)) / "checkpoints" / "last.ckpt"
            seen.append(torch.load(file, weights_only=True)["global_step"] if file.exists() else 0)

    trainer = run(tmp_path, LastCheckpoint(), Look(save_top_k=0), max_steps=7, strategy=hybrid())
    assert seen == [0, 0, 0, 3, 3, 3, 6]
    assert torch.load(Path(str(trainer.log_dir)) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7


def test_last_is_written_every_so_often(tmp_path: Path) -> None:
    steps: list[int] = []

    class Counted(LastCheckpoint):
        def save(self, trainer: Trainer) -> Path:
            steps.append(trainer.global_step)
            return super().save(trainer)

    run(tmp_path, Counted(every_minutes=0), max_steps=3, limit_val_batches=0, strategy=hybrid())
    assert steps == [1, 2, 3]
    steps.clear()
    run(tmp_path, Counted(), max_steps=3, limit_val_batches=0, strategy=hybrid())
    assert steps == [3]


def test_a_fast_dev_run_writes_none(tmp_path: Path) -> None:
    keep = LastCheckpoint(0), PrunedCheckpoint("val_accuracy")
    run(tmp_path, *keep, fast_dev_run=2, default_root_dir=tmp_path, strategy=hybrid())
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (
            partial(ModelCheckpoint, monitor="val_accuracy"),
            r"ModelCheckpoint\(monitor='val_accuracy'\) may .*PrunedCheckpoint",
        ),
        (
            partial(EarlyStopping, "val_accuracy"),
            r"EarlyStopping may stop this run before it is fully pruned: use .*PrunedEarlyStopping",
        ),
    ],
)
def test_choices_that_do_not_know_of_pruning_are_told_of(tmp_path: Path, callback: Any, remedy: str) -> None:
    with pytest.warns(UserWarning, match=remedy) as told:
        run(tmp_path, callback(), max_steps=3, strategy=hybrid())
    assert len([warning for warning in told if "pruned" in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*pruned")
        run(tmp_path, callback(), max_steps=3, strategy=PruningStrategy())  # which prunes nothing
        run(tmp_path, ModelCheckpoint(), max_steps=3, strategy=hybrid())
