"""Checkpoint files: whole or not there; refused where they do not fit, before anything is taken over."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tiny_task import TinyTask

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.soft_movement import SoftMovement
from bplightning.training.checkpoint_files import WholeFiles, find_checkpoint, read_checkpoint
from bplightning.training.module import PruningModule


def fit(folder: Path, strategy: PruningStrategy, resume: Path | None = None, **options: Any) -> Trainer:
    task = TinyTask(folder, **{"hidden_size": 16, "intermediate_size": 32} | options.pop("model", {}))
    run = Trainer(
        accelerator="cpu",
        max_steps=options.pop("max_steps", 2),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    run.fit(PruningModule(task, strategy, learning_rate=1e-3), datamodule=task, ckpt_path=resume)
    return run


def hybrid() -> Hybrid:
    return Hybrid(window=PruningWindow(final_warmup=0, initial_warmup=0), granularity={"attention": "4x4"})


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may be greater than `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fit(tmp_path, hybrid()).save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    return tmp_path / "a.ckpt"


# -- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4096, 300_000])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, size: int) -> None:
    file = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"state_dict": {"step": torch.tensor(1)}}, file)
    with (
        disk_of(size),
        pytest.raises(UserError, match=r"checkpoint '.*last\.ckpt' could not be written \(.*File too l"),
    ):
        WholeFiles().save_checkpoint({"state_dict": {"weight": torch.zeros(100_000)}}, file)
    assert read_checkpoint(file)["state_dict"]["step"] == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_an_error_that_is_none_of_the_disks_is_not_blamed_on_it(tmp_path: Path) -> None:
    class Faulty:
        def __reduce__(self) -> Any:
            raise RuntimeError("cannot be pickled")

    with pytest.raises(RuntimeError, match=r"^cannot be pickled$"):
        WholeFiles().save_checkpoint({"state_dict": Faulty()}, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []


def test_every_run_writes_whole_files_but_for_a_writer_of_the_users(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    assert type(fit(tmp_path, hybrid()).strategy.checkpoint_io) is WholeFiles
    assert type(fit(tmp_path, hybrid(), plugins=[Own()]).strategy.checkpoint_io) is Own


# -- reading -------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, saved: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(saved.read_bytes()[:-1000])
    no_checkpoint = tmp_path / "tensors.ckpt"
    torch.save({"weight": torch.zeros(1)}, no_checkpoint)
    text = tmp_path / "text.ckpt"
    text.write_text("hello")
    empty = tmp_path / "empty.ckpt"
    empty.touch()
    for file in (cut, no_checkpoint, text, empty, tmp_path / "nowhere.ckpt", tmp_path):
        with pytest.raises(UserError, match=rf"checkpoint '{file}' cannot be read \(.+\): .+\.") as refused:
            fit(tmp_path, hybrid(), resume=file)
        assert "\n" not in str(refused.value)


def test_a_checkpoint_of_another_run_is_refused_before_training(tmp_path: Path, saved: Path) -> None:
    for other, says in (
        (
            {"strategy": SoftMovement(window=PruningWindow(final_warmup=0))},
            r"scores is 4x4 in the file and 16x16 here; .*; and \d+ more\)",
        ),
        ({"strategy": PruningStrategy()}, r"the file also has strategy\.masks"),
        ({"model": {"num_hidden_layers": 3}}, r"the file lacks model\.bert\.encoder\.layer\.2"),
    ):
        with pytest.raises(UserError, match=rf"a\.ckpt' is of another model or strategy \(.*{says}.* give the options"):
            fit(tmp_path, **({"strategy": hybrid()} | other), resume=saved)


def test_the_newest_good_one_beside_a_bad_one_is_offered(tmp_path: Path, saved: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    whole = saved.read_bytes()
    fit(tmp_path, SoftMovement(window=PruningWindow(final_warmup=0))).save_checkpoint(
        folder / "foreign.ckpt", weights_only=False
    )
    foreign = (folder / "foreign.ckpt").read_bytes()
    contents = {"older.ckpt": whole, "good.ckpt": whole, "cut.ckpt": whole[:-1000], "foreign.ckpt": foreign}
    for age, (name, content) in enumerate(contents.items()):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1000 + age, 1000 + age))
    cut, good = folder / "cut.ckpt", folder / "good.ckpt"
    offer = rf"{re.escape(repr(str(good)))}, of optimizer step 2: remove {{}} and repeat the command, .* or give --ckpt"
    with pytest.raises(
        UserError, match=r"foreign\.ckpt' is of another model.* one of this run is " + offer.format("foreign.ckpt")
    ):
        fit(tmp_path, hybrid(), resume=folder / "foreign.ckpt")
    (folder / "foreign.ckpt").unlink()
    with pytest.raises(
        UserError, match=r"cut\.ckpt' cannot be read .*: the newest good one .* is " + offer.format("cut.ckpt")
    ):
        fit(tmp_path, hybrid(), resume=cut)
    assert fit(tmp_path, hybrid(), resume=good, max_steps=3).global_step == 3


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path, saved: Path) -> None:
    class OneGroupMore(Hybrid):
        def parameter_groups(self, *, total_steps: int) -> list[dict[str, Any]]:
            (group,) = super().parameter_groups(total_steps=total_steps)
            first, *rest = group["params"]
            return [group | {"params": rest}, group | {"params": [first], "name": "first"}]

    strategy = OneGroupMore(window=PruningWindow(final_warmup=0, initial_warmup=0), granularity={"attention": "4x4"})
    with pytest.raises(
        UserError, match=r"the optimizer's groups are .*scores \(\d+\) in the file and .*first \(1\) here"
    ):
        fit(tmp_path, strategy, resume=saved)


def test_training_cannot_go_on_from_weights_alone(tmp_path: Path) -> None:
    fit(tmp_path, hybrid()).save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(UserError, match=r"weights\.ckpt' holds only weights, .* save_weights_only"):
        fit(tmp_path, hybrid(), resume=tmp_path / "weights.ckpt")


# -- finding -------------------------------------------------------------------------------------------------------


def test_the_last_is_the_newest_and_the_best_what_it_names(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "best") is find_checkpoint(tmp_path) is None
    best = {"monitor": "val_f1", "best_model_path": "moved/since/best-step=2.ckpt"}
    for age, name in enumerate(["last.ckpt", "best-step=3.ckpt", "best-step=2.ckpt", "best-step=1.ckpt"]):
        torch.save({"state_dict": {}, "callbacks": {"unmonitored": {"monitor": None}, "ours": best}}, tmp_path / name)
        os.utime(tmp_path / name, (1000 - age // 2, 1000 - age // 2))
    assert find_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    assert find_checkpoint(tmp_path, "best") == tmp_path / "best-step=2.ckpt"
    (tmp_path / "best-step=2.ckpt").unlink()
    assert find_checkpoint(tmp_path, "best") is None
