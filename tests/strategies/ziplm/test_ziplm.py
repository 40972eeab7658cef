"""ZipLM: one-shot, gradual, size variants from one run; what it promises beside what every strategy does."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from made_tables import made_table
from tiny_families import tiny
from tiny_task import TinyTask, trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.saved_models import load_saved
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.measuring.latency_table import LatencyTable
from bplightning.planning.plan import plan
from bplightning.stages import pipeline
from bplightning.stages.request import RunRequest
from bplightning.strategies.ziplm import ziplm
from bplightning.strategies.ziplm.ziplm import ZipLM
from bplightning.testing import StrategyContract
from bplightning.testing.strategy_contract import example_loss
from bplightning.testing.tiny_model import padded_inputs, tiny_bert
from bplightning.training.calibration import shared_batches
from bplightning.training.module import PruningModule
from bplightning.training.simplification import Simplification
from bplightning.training.size_variants import MARKER

TABLE = "table.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table of the contract's model lies."""
    monkeypatch.chdir(tmp_path)
    made_table(PrunableLayout.of(tiny_bert())).save(Path(TABLE))
    return tmp_path


class TestContract(StrategyContract):
    strategy = ZipLM
    options = ({"target": Target(latency_speedup=[1.3, 1.8], latency_table=TABLE), "search_tries": 3},)


def calibrated(family: str = "bert", speedup: float = 1.6, **options: Any) -> tuple[Any, ZipLM, LatencyTable, Any]:
    """One-shot on a tiny model: the model, the strategy, its table, and the model as it was."""
    model: Any = tiny(family)
    layout = PrunableLayout.of(model)
    table = made_table(layout)
    table.save(Path("own.json"))
    before = copy.deepcopy(model)
    strategy = ZipLM(target=Target(latency_speedup=[speedup], latency_table="own.json"), **options)
    strategy.attach(layout)
    strategy.calibrate(model, batches_for(model), squares)
    return model, strategy, table, before


def batches_for(model: Any) -> list[dict[str, Tensor]]:
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(8):
        ids = torch.randint(2, model.config.vocab_size, (4, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        found.append(batch | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
    return found


def squares(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    return outputs[0].square().mean()


@pytest.mark.parametrize("family", ["bert", "llama", "qwen2", "gpt2", "t5", "bart"])
def test_it_keeps_within_the_budget_and_compacts_exactly(family: str) -> None:
    """Grouped queries, fused projections, layers without a bias, decoders beside encoders."""
    model, strategy, table, _ = calibrated(family, search_tries=2)
    kept = [(group.role, int(mask.kept.sum())) for group, mask in zip(strategy.groups, strategy.all_masks, strict=True)]
    assert table.dense_ms / 1.9 < table.milliseconds(kept) <= table.dense_ms / 1.6
    for group, mask in zip(strategy.groups, strategy.all_masks, strict=True):
        weight = group.members[-1].weight(model)
        gone = ~mask.kept[:, 0].repeat_interleave(weight.shape[1] // len(mask.kept))
        assert torch.equal((weight == 0).all(0), gone)  # exactly zero, and nothing else is
    inputs = batches_for(model)[0]
    with torch.no_grad():
        masked = model(**inputs)[0]
        strategy.harden(PrunableLayout.of(model))
        small: Any = compact(model)
        torch.testing.assert_close(small(**inputs)[0], masked, rtol=1e-4, atol=1e-4)
    assert [len(each.kept) for each in small.compaction_plan.groups] == [count for _, count in kept]


def test_what_stays_makes_up_for_what_went() -> None:
    """The same heads and units gone, with the weights as they were: 130 times the error (by biases alone, 7 times)."""
    model, strategy, _, before = calibrated(speedup=1.3, search_tries=0)
    strategy.harden(PrunableLayout.of(model))
    plain = copy.deepcopy(before)
    for was, now in zip(PrunableLayout.of(plain).groups, PrunableLayout.of(model).groups, strict=True):
        gone = (now.members[-1].weight(model) == 0).all(0)
        with torch.no_grad():
            was.members[-1].weight(plain)[:, gone] = 0
    inputs = batches_for(model)[0]
    live = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted, updated, cut = (each(**inputs).start_logits[live] for each in (before, model, plain))
    assert 50 * (updated - wanted).square().sum() < (cut - wanted).square().sum()


def test_the_loss_of_a_try_is_that_of_all_rows_however_they_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    def look(layers: Any, *, loss_of: Any, **_: Any) -> tuple[int, ...]:
        sizes = tuple(layer.kept[-1] for layer in layers)
        found.append(loss_of(sizes))
        return sizes

    monkeypatch.setattr(ziplm, "search_sizes", look)
    (rows,) = (padded_inputs(seed=0),)
    count = len(rows["input_ids"])
    split = [{name: value[part] for name, value in rows.items()} for part in (slice(1), slice(1, count))]
    for batches in ([rows], split):
        model = tiny_bert()
        strategy = ZipLM(target=Target(latency_speedup=[1.6], latency_table=TABLE))
        strategy.attach(PrunableLayout.of(model))
        strategy.calibrate(model, batches, squares)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_padding_is_no_data() -> None:
    """What stands in padding changes nothing."""
    masks = []
    for token in (3, 4):
        model: Any = tiny_bert()
        strategy = ZipLM(target=Target(latency_speedup=[1.6], latency_table=TABLE), search_tries=0)
        strategy.attach(PrunableLayout.of(model))
        batches = [padded_inputs(seed=seed) for seed in range(6)]
        for batch in batches:
            batch["input_ids"][batch["attention_mask"] == 0] = token
        strategy.calibrate(model, batches, example_loss)
        masks.append((strategy.state_dict(), strategy.groups[0].members[-1].weight(model)))
    torch.testing.assert_close(masks[0][1], masks[1][1])
    for name, value in masks[0][0].items():
        assert not isinstance(value, Tensor) or torch.equal(value, masks[1][0][name]), name


# -- in `fit` ----------------------------------------------------------------------------------------------------------

STEPS = 24


class Workers(TinyTask):
    """A loader with all that could be disturbed: a worker that lives on, and a generator of its own."""

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        data = super().train_dataloader().dataset
        generator = torch.Generator().manual_seed(5)
        return DataLoader(data, batch_size=8, shuffle=True, generator=generator, num_workers=1, persistent_workers=True)


class Watching(Callback):
    """Notes what is trained on and what is left; saves a checkpoint after a step."""

    def __init__(self, save_at: int | None = None) -> None:
        self.save_at = save_at
        self.seen: list[int] = []
        self.kept: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(int(batch["input_ids"].sum()))
        masks = pl_module.strategy.all_masks  # type: ignore[union-attr]
        self.kept.append(torch.cat([mask.kept.flatten() for mask in masks]))
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(Path(str(trainer.log_dir)) / "checkpoints" / "middle.ckpt")


def module_of(task: TinyTask, targets: list[float] | None = None, **options: Any) -> PruningModule:
    layout = PrunableLayout.of(task.build_model())
    made_table(layout).save(Path("own.json"))
    strategy = ZipLM(
        target=Target(latency_speedup=targets or [1.4, 2.0], latency_table="own.json"), search_tries=4, **options
    )
    return PruningModule(task, strategy, learning_rate=1e-3)


def run(folder: Path, name: str, watch: Watching, **options: Any) -> Trainer:
    return trainer(folder, name, max_epochs=-1, max_steps=STEPS, callbacks=[watch], **options)


def test_size_variants_come_from_one_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency = measure.latency
    brief = {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 1}
    monkeypatch.setattr(measure, "latency", lambda *args, **options: latency(*args, **(options | brief)))
    task = TinyTask(folder)
    watch = Watching(save_at=16)
    trained, module = run(folder, "sizes", watch, enable_checkpointing=False), module_of(task)
    report = pipeline.fit(trained, module)
    assert report is not None
    # What went at 6 of 24 steps, and at 15, stays away.
    counts = [int(kept.sum()) for kept in watch.kept]
    assert [step + 1 for step in range(1, STEPS) if counts[step] != counts[step - 1]] == [6, 15]
    assert all((later <= earlier).all() for earlier, later in zip(watch.kept, watch.kept[1:], strict=False))
    folder_of_run = Path(str(trained.log_dir))
    (variant,) = report["family"]
    assert (variant["name"], variant["folder"]) == ("1.4x", "compact-1.4x")
    assert variant["speedup"].keys() == {"1x40", "8x40"}
    table = LatencyTable.load("own.json")
    sizes = []
    for path, target in (("compact-1.4x", 1.4), ("compact", 2.0)):
        model: Any = load_saved(task.load_model, folder_of_run / path, what=path)
        layout = PrunableLayout.of(model)
        kept = [(each.role, each.heads) for each in layout.attention]
        kept += [(each.role, each.width) for each in layout.feed_forward]
        assert table.dense_ms / target * 0.8 < table.milliseconds(kept) <= table.dense_ms / target
        sizes.append(measure.parameters(model, layout))
    assert sizes == [variant["parameters"], report["parameters"]["compact"]]
    notes, broken = folder_of_run / "compact-notes", folder_of_run / "compact-1.2x"
    notes.mkdir()  # a user's own, as is a copy of a kept model
    shutil.copytree(folder_of_run / "compact-1.4x", folder_of_run / "compact-copy")
    shutil.copytree(folder_of_run / "compact-1.4x", broken)
    (broken / MARKER).write_text("compact-1.2x")
    (broken / "config.json").write_text("{")
    resumed = run(folder, "sizes", Watching(), enable_checkpointing=False)
    checkpoint = folder_of_run / "checkpoints" / "middle.ckpt"
    request = RunRequest(ckpt_path=checkpoint, weights_only=True)
    with pytest.warns(UserWarning, match=r"the model '1\.2x' .* cannot be loaded: .* The report goes without it"):
        report = pipeline.fit(resumed, module_of(task), request)
    assert report is not None
    there = sorted(path.name for path in Path(str(resumed.log_dir)).glob("compact*"))
    assert there == ["compact", "compact-1.2x", "compact-1.4x"]
    assert [each["parameters"] for each in report["family"]] == sizes[:1]  # the model that was kept before is its, too
    again = trainer(folder, "sizes", default_root_dir=folder_of_run, logger=False)
    (folder_of_run / "compact").rename(folder_of_run / "moved")
    with pytest.raises(UserError, match=r"compact-1\.2x' is there already"):
        pipeline.fit(again, module_of(task))


def test_calibration_disturbs_no_data_and_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    states, seen, middle = [], [], folder / "whole" / "version_0" / "checkpoints" / "middle.ckpt"
    for name, save_at in (("whole", 9), ("resumed", None), ("unpruned", None)):
        torch.manual_seed(0)
        task, watch = Workers(folder), Watching(save_at)
        module = module_of(
            task, [1.4, 2.0] if name != "unpruned" else [1.01], start=0.25 if name != "unpruned" else 0.9
        )
        options = {"enable_checkpointing": False, "limit_val_batches": 0}
        run(folder, name, watch, **options).fit(
            module, datamodule=task, ckpt_path=middle if name == "resumed" else None, weights_only=True
        )
        states.append(module.state_dict())
        seen.append(watch.seen)
    assert seen[0] == seen[2]
    assert seen[1] == seen[0][9:]
    assert states[0]["strategy._extra_state"].tolist() == [2, 1.4, 2.0]
    for key, value in states[0].items():
        assert value == states[1][key] if not isinstance(value, Tensor) else torch.equal(value, states[1][key]), key


def test_a_model_that_is_not_wholly_simplified_yet_is_not_kept(folder: Path) -> None:
    task = TinyTask(folder)
    module = module_of(task)
    module.simplification = Simplification(relu=True)
    short = trainer(folder, max_epochs=-1, max_steps=8, limit_val_batches=0, enable_checkpointing=False)
    with pytest.warns(UserWarning, match=r"the model '1\.4x' is ready, but not wholly simplified yet"):
        short.fit(module, datamodule=task)
    assert not list(Path(str(short.log_dir)).glob("compact-*"))


def test_calibration_data_are_as_many_examples_as_asked_for(folder: Path) -> None:
    task, found = TinyTask(folder), []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for _ in range(2):
                found.append([batch["input_ids"] for batch in shared_batches(trainer, task, 20)])

    module = module_of(task)
    trainer(folder, max_epochs=1, callbacks=[Look()], limit_val_batches=0, enable_checkpointing=False).fit(
        module, datamodule=task
    )
    assert [len(each) for each in found[0]] == [8, 8, 8]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Target(density=0.5)}, "target.density is 0.5, which ziplm cannot prune to: it takes target.lat"),
        ({"start": 1.0}, r"start is 1; .* must be in \[0, 1\)"),
        ({"calibration_examples": 0}, "calibration_examples is 0; it must be 1 or more"),
        ({"damping": 0.0}, "damping is 0; it must be above 0"),
        ({"search_tries": -1}, "search_tries is -1; it must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ZipLM(**options)


def test_a_layer_that_is_never_computed_is_named() -> None:
    """The cross-attention of a decoder that is used without an encoder."""
    model = tiny("marian", auto=AutoModelForCausalLM)
    layout = PrunableLayout.of(model)
    made_table(layout).save(Path("own.json"))
    strategy = ZipLM(target=Target(latency_speedup=[1.2], latency_table="own.json"))
    strategy.attach(layout)
    batches = [{"input_ids": torch.arange(24).reshape(4, 6)}]
    with pytest.raises(
        UserError, match=r"decoder\.0\.cross, .* of the model was never computed on the calibration data"
    ):
        strategy.calibrate(model, batches, lambda outputs, batch: outputs.logits.square().mean())


def test_a_target_out_of_reach_is_refused_before_training() -> None:
    strategy = ZipLM(target=Target(latency_speedup=[2.0, 12.0], latency_table=TABLE))
    with pytest.raises(UserError, match=r"has 12, which cannot be reached: .* is 8 times faster"):
        strategy.attach(PrunableLayout.of(tiny_bert()))


def test_without_a_table_it_says_what_to_do() -> None:
    model = tiny_bert()
    strategy = ZipLM()
    strategy.attach(PrunableLayout.of(model))
    with pytest.raises(UserError, match=r"give target\.latency_table, or call `prepare`"):
        strategy.calibrate(model, [padded_inputs(seed=0)], example_loss)
    strategy = ZipLM(target=Target(latency_speedup=2, latency_table=TABLE))
    strategy.attach(PrunableLayout.of(tiny_bert()))
    with pytest.raises(UserError, match="there was no batch to calibrate with"):
        strategy.calibrate(model, [], example_loss)


@pytest.mark.parametrize(
    ("damping", "value", "message"),
    [
        (1e-300, 1.0, r"the Hessian of encoder\.0\.\w+ cannot be inverted with damping 1e-300: give a greater damping"),
        (0.01, torch.nan, r"what encoder\.0\.\w+ reads is NaN or infinite .* damping \(now 0\.01\)"),
    ],
)
def test_a_layer_whose_hessian_is_of_no_use_is_named(damping: float, value: float, message: str) -> None:
    model = tiny_bert()
    model.get_input_embeddings().weight.data[3] *= value
    strategy = ZipLM(target=Target(latency_speedup=2, latency_table=TABLE), damping=damping)
    strategy.attach(PrunableLayout.of(model))
    with pytest.raises(UserError, match=message):
        strategy.calibrate(model, [{"input_ids": torch.tensor([[2, 3]])}], example_loss)


def test_size_variants_are_pruned_to_at_even_intervals() -> None:
    strategy = ZipLM(target=Target(latency_speedup=[1.5, 2.0, 4.0]), start=0.1)
    due = [strategy.due_at(Progress(step, 100, warmup_steps=5)) for step in (0, 9, 10, 39, 40, 69, 70, 100)]
    assert due == [0, 0, 1, 1, 2, 2, 3, 3]


def test_targets_that_fall_on_one_step_are_refused_at_the_first() -> None:
    with pytest.raises(UserError, match=r"has 3 targets, .* start 0\.5 and 4 optimizer steps they fall on 2, 3, 3,"):
        ZipLM(target=Target(latency_speedup=[1.5, 2.0, 4.0]), start=0.5).advance(Progress(0, 4, warmup_steps=0))


def test_a_run_with_other_targets_is_not_gone_on_with() -> None:
    ours, theirs = ZipLM(target=Target(latency_speedup=[1.5, 2.0])), ZipLM(target=Target(latency_speedup=[1.5, 3.0]))
    with pytest.raises(UserError, match=r"latency_speedup is \[1\.5, 2\], and the run to continue has \[1\.5, 3\]"):
        ours.load_state_dict(theirs.state_dict())


def test_a_plan_says_that_it_cannot_know() -> None:
    (problem,) = plan(tiny_bert(), ZipLM(target=Target(latency_speedup=2, latency_table=TABLE)))["problems"]
    assert "follows from data, which `plan` does not read" in problem["message"]
