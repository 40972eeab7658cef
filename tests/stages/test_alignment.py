"""Alignment: removed feed-forward units come back, the best first, until widths are multiples; compaction is exact."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import inputs_for, tensors_of, tiny
from tiny_task import TinyTask, trainer

from bplightning.cli import main
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import Target
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.masks.masking import Mask
from bplightning.measuring import measure
from bplightning.measuring.timing import Times
from bplightning.reporting.report import load_report
from bplightning.runs import compact_run as compacting
from bplightning.stages import alignment, finishing, one_shot, pipeline
from bplightning.stages.alignment import AUTO, Alignment, align, fastest, require_possible
from bplightning.stages.refill import Refill
from bplightning.stages.request import RunRequest
from bplightning.stages.stage_cache import Notes
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.l0 import L0
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.post_training.post_training import PostTraining
from bplightning.strategies.ziplm.ziplm import ZipLM
from bplightning.training.module import PruningModule
from bplightning.training.restore_units import masks_restored, restore_units
from bplightning.training.simplification import Simplification

UNITS = {"attention": "head", "feed_forward": "unit"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Measure real models, but briefly; what was measured together."""
    latency, measured = measure.latency, []

    def brief(models: dict[str, Any], *args: Any, **options: Any) -> Any:
        measured.append(set(models))
        return latency(models, *args, **(options | {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 2}))

    monkeypatch.setattr(measure, "latency", brief)
    return measured


def pruned(strategy: PruningStrategy, family: str = "bert", *, seed: int = 0, **model: Any) -> PruningModule:
    """A module whose scores are random, and whose masks keep what has a score above 0."""
    module = PruningModule(None, strategy)  # type: ignore[arg-type]
    module.model = tiny(family, **model)
    module.configure_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mask in strategy.all_masks:
            scores_RC = torch.randn(mask.kept.shape, generator=generator)
            if mask.gate is not None:  # shut below -2.4
                scores_RC = 8 * scores_RC
            if mask.scores is not None:
                mask.scores.copy_(scores_RC)
            mask.set_grid(scores_RC > 0 if mask.gate is None else mask.gate(scores_RC, None) > 0)
    return module


def unit_masks(module: PruningModule) -> list[Mask]:
    return [mask for mask in module.strategy.all_masks if "feed_forward" in mask.role]


def widths(model: Any) -> list[int]:
    return [len(kept) for _, kept, _ in CompactionPlan.of(model).units]


STRATEGIES: dict[str, Any] = {
    "units": lambda: Hybrid(granularity=UNITS),
    "blocks": lambda: Hybrid(granularity={"attention": "head", "feed_forward": "4x16"}),
    "rows": lambda: Hybrid(granularity={"attention": "head", "feed_forward": "row"}),
    "gates": lambda: L0(granularity=UNITS),
    "without scores": lambda: Magnitude(target=Target(density=0.5), granularity=UNITS),
}
WIDTHS = {"t5": ("d_ff",), "bart": ("encoder_ffn_dim", "decoder_ffn_dim")}


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *(("bert", strategy) for strategy in STRATEGIES),
        *((family, strategy) for family in ("llama", "t5", "bart") for strategy in ("units", "blocks")),
        ("llama", "rows"),
        ("bart", "gates"),
    ],
)
def test_widths_are_multiples_and_the_compact_model_is_exact(family: str, strategy: str) -> None:
    module = pruned(STRATEGIES[strategy](), family, **dict.fromkeys(WIDTHS.get(family, ("intermediate_size",)), 64))
    assert module.layout is not None
    gone = module.layout.feed_forward[1]
    for mask in module.strategy.all_masks:
        if mask.covers[0].member in gone.members:  # a layer that is gone stays so
            mask.set_grid(torch.zeros_like(mask.kept))
            if mask.gate is not None:
                mask.scores.data.fill_(-9.0)  # type: ignore[union-attr]
    before = widths(module.hardened_copy())
    assert before[1] == 0
    assert any(width % 16 for width in before)
    aligned = restore_units(module, 16)
    masked = module.harden().eval()
    small: Any = compact(masked)
    assert widths(masked) == widths(aligned) == [-(-width // 16) * 16 for width in before]
    inputs = inputs_for(masked, "right")
    for name, value in tensors_of(masked, inputs).items():
        torch.testing.assert_close(tensors_of(small, inputs)[name], value, atol=2e-5, rtol=1e-4)


def one_layer(strategy: PruningStrategy, keep: int) -> tuple[PruningModule, list[Any]]:
    """A BERT of whose first feed-forward layer's 24 units the first few are kept, and the masks of that layer."""
    module = pruned(strategy)
    masks = [mask for mask in unit_masks(module) if "layer.0." in mask.covers[0].member.name]
    for mask in masks:
        kept_RC = torch.zeros_like(mask.kept)
        units = kept_RC.T if mask is not masks[0] else kept_RC  # columns of the down projection
        units[: keep * len(units) // 24] = True
        mask.set_grid(kept_RC)
    return module, masks


def test_the_units_with_the_best_scores_come_back_and_no_more_than_needed() -> None:
    module, (mask,) = one_layer(Hybrid(granularity=UNITS), keep=5)
    scores = torch.linspace(-3, -1, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    mask.scores.data.copy_(scores[:, None])
    restore_units(module, 8)
    best = {5 + int(index) for index in scores[5:].topk(3).indices}
    assert set(mask.kept.flatten().nonzero().flatten().tolist()) == {*range(5), *best}


def test_scores_of_up_and_down_projections_count_together() -> None:
    module, (up, down) = one_layer(Hybrid(granularity={"attention": "head", "feed_forward": "element"}), keep=24)
    for unit, (of_up, of_down) in {3: (-1.0, -1.0), 7: (2.0, -9.0), 11: (-9.0, 2.0)}.items():
        up.kept[unit], down.kept[:, unit] = False, False
        up.scores.data[unit], down.scores.data[:, unit] = of_up, of_down
    restore_units(module, 22)
    for mask in (up.kept, down.kept.T):
        assert mask.all(1).logical_not().nonzero().flatten().tolist() == [7, 11]


def test_without_scores_the_units_with_the_largest_weights_come_back() -> None:
    module, (mask,) = one_layer(Magnitude(target=Target(density=0.5), granularity=UNITS), keep=7)
    model: Any = module.model
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense._parameters["weight"][20] *= 3
        layer.output.dense._parameters["weight"][:, 21] *= 2
    restore_units(module, 8)
    assert mask.kept.flatten().nonzero().flatten().tolist() == [*range(7), 20]


def test_a_width_goes_no_farther_than_the_dense_one() -> None:
    module, (mask,) = one_layer(Hybrid(granularity=UNITS), keep=17)
    restore_units(module, 16)  # of 24 units
    assert bool(mask.kept.all())


def test_a_tile_brings_all_its_units_and_the_loop_ends_where_the_width_fits() -> None:
    module, (up, down) = one_layer(Hybrid(granularity={"attention": "head", "feed_forward": "4x4"}), keep=4)
    up.scores.data.zero_()
    down.scores.data.zero_()
    up.scores.data[3] = 1
    assert widths(restore_units(module, 6))[0] == 12  # 8 are no multiple of 6
    assert up.kept.all(1).tolist() == [True, True, False, True, False, False]
    assert down.kept.all(0).tolist() == up.kept.all(1).tolist()


def test_what_units_that_live_depend_on_is_left_as_it_is() -> None:
    module, (up, down) = one_layer(Hybrid(granularity={"attention": "head", "feed_forward": "row"}), keep=5)
    kept_RC = torch.arange(32)[:, None] % 2 == 0
    down.set_grid(kept_RC)  # an entry of it is a row, of all units
    assert widths(restore_units(module, 8))[0] == 8
    assert torch.equal(down.kept, kept_RC)
    assert int(up.kept.sum()) == 8


def test_patterns_are_left_as_they_are() -> None:
    module, masks = one_layer(
        Magnitude(target=Target(density=0.5), granularity={"attention": "head", "feed_forward": "2:4"}), keep=6
    )
    before = [mask.kept.clone() for mask in masks]
    restore_units(module, 8)
    assert all(torch.equal(mask.kept, kept_RC) for mask, kept_RC in zip(masks, before, strict=True))


def test_a_gate_opens_as_far_as_the_least_open_one_that_stayed() -> None:
    module, (mask,) = one_layer(L0(granularity=UNITS), keep=5)
    mask.scores.data.copy_(torch.where(mask.kept, torch.linspace(2, 3, 24)[:, None], -4.0))
    mask.scores.data[9] = -3.0
    mask.scores.data[3] = -1.0  # the least open
    restore_units(module, 6)
    gates = mask.gate(mask.scores, None).flatten()
    assert gates.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 9]
    assert gates[9] == gates[3] < gates[0]
    assert mask.kept.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 9]
    assert float(module.strategy.density()["feed_forward"]) == float(
        torch.cat([each.kept for each in unit_masks(module)]).float().mean()
    )


def test_masks_can_be_had_again_as_they_were() -> None:
    module = pruned(L0(granularity=UNITS))
    before = copy.deepcopy(module.strategy.state_dict())
    with masks_restored(module.strategy.all_masks):
        restore_units(module, 16)
        assert any(not torch.equal(value, before[name]) for name, value in module.strategy.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in module.strategy.state_dict().items())


@pytest.mark.parametrize("strategy", [lambda: L0(granularity=UNITS), lambda: Hybrid(granularity=UNITS)])
def test_the_hardened_copy_is_what_hardening_will_make(strategy: Any) -> None:
    settings = Simplification(relu=True, no_norm=True)
    module = PruningModule(None, strategy(), simplification=settings)  # type: ignore[arg-type]
    module.model = tiny("bert", hidden_act="gelu")
    module.configure_model()
    assert module.simplifier is not None
    with pytest.raises(UserError, match="not wholly simplified"):
        restore_units(module, 8)
    module.simplifier.amount = 1.0
    ahead = module.hardened_copy()
    after = module.harden().eval()
    inputs = inputs_for(after, "right")
    for name, value in tensors_of(after, inputs).items():
        assert torch.equal(tensors_of(ahead, inputs)[name], value)
    assert [type(part) for part in ahead.modules()] == [type(part) for part in after.modules()]


def test_the_fastest_multiple_is_taken_and_a_smaller_one_that_is_not_surely_slower() -> None:
    def of(*speedups: float, noise: float = 0.0) -> dict[str, Times]:
        rounds = [(1 / each * (1 - noise), 1 / each * (1 + noise)) * 4 for each in speedups]
        return {str(index): Times(times, times) for index, times in enumerate(rounds)}

    assert fastest({1: of(1, 1), 8: of(1.3, 0.6), 16: of(0.99, 0.98)}) == 1
    assert fastest({1: of(1, 1), 8: of(1.004, 1.004), 16: of(1.009, 1.009)}) == 1
    assert fastest({1: of(1, 1), 8: of(1.095, 1.095), 16: of(1.1, 1.1), 32: of(1.1, 1.105)}) == 8
    # Half a tenth faster, by times that scatter by a tenth: nobody knows.
    assert fastest({1: of(1, 1), 8: of(1.05, 1.05, noise=0.1)}) == 1
    assert fastest({1: of(1, 1), 8: of(1.5, 1.5, noise=0.1)}) == 8


# -- the end of a run --------------------------------------------------------------------------------------------------


def stage(folder: Path, epochs: int | None) -> Any:
    return trainer(folder, logger=False, default_root_dir=folder, max_epochs=epochs)


def end(folder: Path, settings: Alignment, *, resume: bool = False, refill: Refill | None = None) -> dict[str, Any]:
    """A run in this folder, or what is left of it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    task = TinyTask(folder, max_position_embeddings=128, intermediate_size=72)
    window = PruningWindow(final_warmup=2)
    strategy = Hybrid(window=window, granularity=UNITS, regularization=60, score_learning_rate=2.75)
    module = PruningModule(task, strategy, learning_rate=1e-3)
    run = trainer(folder, logger=False, default_root_dir=folder)
    request = RunRequest(alignment=settings, refill=refill, resume=resume)
    report = pipeline.fit(run, module, request, stage_trainer=stage)
    assert report is not None
    return dict(report)


def test_the_report_says_what_it_cost_and_gained(tmp_path: Path, quick: list[set[str]]) -> None:
    report, plain = end(tmp_path / "aligned", Alignment(16)), end(tmp_path / "plain", Alignment())
    assert plain["alignment"] is None
    said = report["alignment"]
    assert (said["multiple_of"], said["auto"]) == (16, False)
    units = [{layer["name"]: layer["kept"] for layer in each["units"]["by_layer"]} for each in (plain, report)]
    assert said["by_layer"] == [{"name": name, "before": units[0][name], "after": units[1][name]} for name in units[0]]
    assert any(width % 16 for width in units[0].values())
    assert {width % 16 for width in units[1].values()} - {72 % 16} == {0}
    assert said["units_added"] == report["units"]["kept"] - plain["units"]["kept"] > 0
    assert said["parameters_added"] == report["parameters"]["compact"]["all"] - plain["parameters"]["compact"]["all"]
    assert said["density_before"] == plain["density"]["encoder_linear"] < report["density"]["encoder_linear"]
    assert plain["density"]["by_role"]["feed_forward"] < report["density"]["by_role"]["feed_forward"]
    assert said["metrics_before"] == plain["metrics"]["masked"]
    assert [(of["multiple_of"], of["units_added"]) for of in said["candidates"]] == [(1, 0), (16, said["units_added"])]
    assert said["candidates"][0]["speedup"] == {"1x128": 1.0, "8x128": 1.0}
    assert quick[0] == {"1", "16"}
    assert report["metrics"]["masked"] == report["metrics"]["compact"]
    assert report["equivalence"]["masked_compact"] < 1e-4
    assert load_report(tmp_path / "aligned" / "report.json") == report


REFILL = Refill(max_epochs=1)


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def files(folder: Path) -> bytes:
    return (folder / "compact" / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # Lightning's own, of the second process
def test_an_end_that_was_stopped_gives_the_same_and_measures_no_multiple_again(
    tmp_path: Path, quick: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "fastest", lambda times: 16)  # what is measured twice may be chosen otherwise
    whole = end(tmp_path / "whole", Alignment(AUTO), refill=REFILL)
    with monkeypatch.context() as patched:
        patched.setattr(finishing, "make_compact", stop)
        with pytest.raises(KeyboardInterrupt):
            end(tmp_path / "pieces", Alignment(AUTO), refill=REFILL)
    assert {"1", "8", "16"} <= quick[-1]
    quick.clear()
    monkeypatch.setattr(alignment, "fastest", lambda times: 8)
    pieces = end(tmp_path / "pieces", Alignment(AUTO), refill=REFILL, resume=True)
    assert quick == [{"dense", "compact"}]
    assert files(tmp_path / "pieces") == files(tmp_path / "whole")
    said = [report["alignment"] | {"candidates": None} for report in (whole, pieces)]
    assert said[0] == said[1]
    assert (said[0]["multiple_of"], said[0]["auto"]) == (16, True)
    for key in ("metrics", "density", "units", "refill", "parameters"):
        assert whole[key] == pieces[key], key


def test_units_that_the_others_make_up_for_are_not_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"multiple_of is 16, but strategy 'ziplm', as it is set, .*: leave it at 1"
    task, run = TinyTask(tmp_path), trainer(tmp_path)
    with pytest.raises(UserError, match=message):
        pipeline.fit(run, PruningModule(task, ZipLM()), RunRequest(alignment=Alignment(16)))
    with pytest.raises(UserError, match=message):
        one_shot.prune(run, PruningModule(task, ZipLM()), RunRequest(alignment=Alignment(16)))
    with pytest.raises(UserError, match="strategy 'post-training', as it is set"):
        require_possible(Alignment(AUTO), PostTraining())
    require_possible(Alignment(AUTO), PostTraining(tune=False))
    (tmp_path / "config.yaml").write_text("{}")
    monkeypatch.setattr(compacting, "load_run", lambda *_: PruningModule(task, ZipLM()))
    with pytest.raises(UserError, match=message):
        compacting.compact_run(tmp_path, tmp_path / "out", multiple_of=16)
    require_possible(Alignment(), ZipLM())


def test_every_rank_does_as_the_first_one_found_best(tmp_path: Path, quick: list[set[str]]) -> None:
    """A stand-in for the trainer of a second rank, to which the first one tells what it found."""
    said = {"multiple_of": 16, "units_added": 5, "metrics_before": None}
    told = SimpleNamespace(
        is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda mine: mine or said, root_device="cpu")
    )
    task = TinyTask(tmp_path)
    module, alone = (pruned(Hybrid(granularity=UNITS), intermediate_size=64) for _ in range(2))
    notes = Notes(told, None, resume=False)  # type: ignore[arg-type]
    evaluated: list[list[int]] = []

    def evaluate(model: Any) -> dict[str, float | None]:
        evaluated.append(widths(model))
        return {"accuracy": 1.0}

    found = align(told, module, task, Alignment(AUTO), notes=notes, evaluate=evaluate)  # type: ignore[arg-type]
    assert quick == []
    assert evaluated == [widths(alone.hardened_copy())]
    assert found == said | {"metrics_before": {"accuracy": 1.0}}
    assert widths(module.harden()) == widths(restore_units(alone, 16))


@pytest.mark.parametrize("value", [0, -8, True, "fast", "16.5"])
def test_what_a_multiple_cannot_be(value: Any) -> None:
    message = f"alignment's multiple_of is {value!r}; it must be a whole number of units such as 16, 1 to leave widths"
    with pytest.raises(UserError, match=re.escape(message)):
        Alignment(value)


USER_TASK = """
from pathlib import Path

from tiny_task import TinyTask


class WideTask(TinyTask):
    def __init__(self):
        super().__init__(Path(), max_position_embeddings=128, intermediate_size=72)
"""


def test_the_command_line(
    tmp_path: Path, quick: list[set[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("wide_task.py").write_text(USER_TASK)
    words = ["--task", "wide_task.WideTask", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    words += [f"--strategy.granularity={UNITS}", "--strategy.window.final_warmup=2", "--model.learning_rate=1e-3"]
    words += ["--refill.max_epochs=1"]

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    for value in ("0", "fast"):
        assert "alignment's multiple_of is" in refused("fit", *words, f"--alignment.multiple_of={value}")
    assert not Path("runs").exists()

    monkeypatch.setattr(alignment, "fastest", lambda times: 16)
    main(["fit", *words, "--alignment.multiple_of=auto"])
    run = next(Path("runs").glob("*/version_0"))
    monkeypatch.setattr(alignment, "fastest", lambda times: 1)
    main(["compact", str(run), "again"])  # the refilled weights fit no other choice
    assert Path("again/model.safetensors").read_bytes() == files(run)
    line = refused("compact", str(run), "never", "--multiple_of", "8")
    assert line.startswith("bplightning: error: multiple_of is 8, but")
    assert "give --checkpoint last too" in line
    assert "multiple_of is -8" in refused("compact", str(run), "never", "--multiple_of=-8")
    assert not Path("never").exists()
    main(["compact", str(run), "other", "--multiple_of", "24", "--checkpoint", "last"])
    kept = [layer["kept"] for layer in load_report("other/report.json")["units"]["by_layer"]]
    assert {width % 24 for width in kept} == {0}
    assert "feed-forward widths: multiples of 24" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("device", "puts_back", "said"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_on_a_gpu_a_user_hears_of_widths_that_are_slow_there(
    caplog: pytest.LogCaptureFixture, device: str, puts_back: bool, said: bool
) -> None:
    module: Any = SimpleNamespace(strategy=SimpleNamespace(puts_back=puts_back))
    where = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    with caplog.at_level("INFO"):
        none: Any = None
        assert align(where, module, none, Alignment(), notes=none, evaluate=none) is None  # type: ignore[arg-type]
    assert ("give --alignment.multiple_of 16" in caplog.text) is said
