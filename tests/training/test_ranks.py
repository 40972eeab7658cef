"""Masks that differ among ranks end the run; ways of training that cannot be right are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from programs import Program
from tiny_task import TinyTask, trainer

from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.strategies.movement import Movement
from bplightning.training.module import PruningModule
from bplightning.training.ranks import mask_hashes, require_supported

pytestmark = pytest.mark.slow

DIVERGING = '''
import sys
from pathlib import Path

import torch
from tiny_task import TinyTask, trainer

from bplightning import Target
from bplightning.errors import UserError
from bplightning.training.module import PruningModule
from bplightning.strategies.movement import Movement


class Diverging(Movement):
    """One entry of the second mask goes by the rank, as it would by the rank's own random numbers."""

    def advance(self, progress):
        super().advance(progress)
        if torch.distributed.get_rank() == 1 and progress.step >= (12 if sys.argv[2] == "end" else 6):
            mask = self.all_masks[1]
            mask.kept[0, 0] = ~mask.kept[0, 0]


folder = Path(sys.argv[1])
module = PruningModule(TinyTask(folder), Diverging(target=Target(density=0.5)))
options = {"devices": 2, "strategy": "ddp", "logger": False, "enable_checkpointing": False}
run = trainer(folder, **options, check_val_every_n_epoch=1 if sys.argv[2] == "validation" else 9)
try:
    run.fit(module, datamodule=module.task)
except UserError as error:
    Path(f"rank {run.global_rank}").write_text(f"step {run.global_step}: {error}")  # what they print may run together
'''


@pytest.mark.parametrize(("at", "step"), [("validation", 6), ("end", 12)])
def test_masks_that_differ_end_the_run_on_all_ranks(tmp_path: Path, at: str, step: int) -> None:
    (tmp_path / "diverging.py").write_text(DIVERGING)
    path = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    training = Program(tmp_path / "diverging.py", ".", at, cwd=tmp_path, variables=path)
    training.end()
    for rank in (0, 1):
        assert (tmp_path / f"rank {rank}").is_file(), training.said
        refused = (tmp_path / f"rank {rank}").read_text()
        assert refused.startswith(f"step {step}: 1 of 12 masks differ between rank 0 and rank 1")
        assert "the first 'encoder-0-self-key' (hash " in refused
        assert "The strategy, Diverging, must not set masks from anything that differs between ranks" in refused


def test_a_hash_tells_what_is_kept_and_every_score(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Movement(target=Target(density=0.5)))
    module.configure_model()
    before = mask_hashes(module.strategy)
    first, second, *_ = module.strategy.masks.values()
    first.kept[3, 5] = False
    second.scores.data[0, 0] = torch.nextafter(second.scores[0, 0], torch.tensor(1.0))
    after = mask_hashes(module.strategy)
    assert [before[name] != after[name] for name in before] == [True, True, *[False] * (len(before) - 2)]


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_parts_of_weights_are_refused(strategy: type) -> None:
    # Neither can be set up without the hardware it is for: only what is looked at stands there.
    given = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(UserError, match=f"trainer.strategy is {strategy.__name__}, by which a rank may hold parts"):
        require_supported(given)  # type: ignore[arg-type]


def test_processes_that_end_with_training_are_refused_before_it(tmp_path: Path) -> None:
    spawning = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    with pytest.raises(UserError, match=r"with processes that end when training does.*give trainer.strategy ddp"):
        require_supported(spawning)
    require_supported(Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(), logger=False))


def test_a_module_refuses_them_whoever_trains_it(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), Movement(target=Target(density=0.5)))
    run = trainer(tmp_path, devices=1)
    run.strategy.__class__ = type("Sharding", (FSDPStrategy,), {"__del__": lambda self: None})
    module.trainer = run
    with pytest.raises(UserError, match=r"trainer\.strategy is Sharding"):
        module.setup("fit")
