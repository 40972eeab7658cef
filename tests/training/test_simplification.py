"""Simplified networks: what the blend is at its ends and between, and that it comes back from a folder as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from programs import said_by
from tiny_families import DENSE, auto_of, inputs_for, tensors_of, tiny, zero_randomly
from tiny_task import TinyTask
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoModelForQuestionAnswering, PreTrainedModel

from bplightning.compaction.blending import BlendedActivation, BlendedNorm
from bplightning.compaction.compact_config import CONFIG_FIELD
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.no_norm import NoNorm
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.stages.pipeline import train_baseline
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.hybrid import Hybrid
from bplightning.testing.syncs import NoHostSync
from bplightning.training.module import PruningModule
from bplightning.training.simplification import UNMEASURED, Simplification, Simplifier

BOTH = Simplification(no_norm=True, relu=True, final_warmup=1.0)
SOME = ("bert", "distilbert", "bart", "gpt2", "albert", "modernbert")
RMS_NORMED = ("gemma", "llama", "mistral", "mt5", "qwen2", "qwen3", "t5", "umt5")
NOT_GELU_BY_NAME = ("llama", "mistral", "mt5", "qwen2", "qwen3", "umt5")


def at(step: int) -> Progress:
    """A run of 12 steps whose blend goes from step 1 to step 11."""
    return Progress(step=step, total_steps=12, warmup_steps=1)


def measured(model: PreTrainedModel, settings: Simplification = BOTH, *, steps: int = 3) -> Simplifier:
    """A simplifier that has seen a few training batches of the model, at the beginning of the blend."""
    simplifier = Simplifier(settings, PrunableLayout.of(model))
    model.train()
    for step in range(steps):
        model(**inputs_for(model, "right", seed=step))
        simplifier.advance(at(1))
    model.eval()
    return simplifier


def simplified(model_type: str, settings: Simplification = BOTH, **options: Any) -> PreTrainedModel:
    model = tiny(model_type, **options)
    simplifier = measured(model, settings)
    simplifier.advance(at(11))
    assert simplifier.harden()
    return model


def of_kind(model: nn.Module, kind: type) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@torch.no_grad()
def everything(model: PreTrainedModel) -> Tensor:
    return torch.cat([value.flatten() for value in tensors_of(model, inputs_for(model, "right")).values()])


# -- the two ends and the way between ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", SOME)
def test_at_its_beginning_the_blend_is_the_original(model_type: str) -> None:
    model = tiny(model_type)
    before, names = everything(model), list(model.state_dict())
    simplifier = measured(model)
    assert of_kind(model, BlendedNorm)
    assert of_kind(model, BlendedActivation)
    assert torch.equal(everything(model), before)
    assert list(model.state_dict()) == names
    assert simplifier.amount == 0


@pytest.mark.parametrize("model_type", SOME)
def test_at_its_end_it_is_no_norm_and_relu_and_hardening_changes_nothing(model_type: str) -> None:
    model = tiny(model_type)
    before, names = everything(model), list(model.state_dict())
    simplifier = measured(model)
    simplifier.advance(at(11))
    assert simplifier.amount == 1
    blended = everything(model)
    assert not torch.allclose(blended, before, atol=1e-3)
    assert simplifier.harden()
    assert torch.equal(everything(model), blended)
    assert list(model.state_dict()) == names
    layout = PrunableLayout.of(model)
    assert {type(model.get_submodule(group.activation)) for group in layout.feed_forward} == {nn.ReLU}
    assert not of_kind(model, BlendedNorm) | of_kind(model, BlendedActivation)
    # What is left are the norms of embeddings and heads, and those after the last layer.
    left = [name for name, module in of_kind(model, nn.LayerNorm).items() if type(module) is nn.LayerNorm]
    assert not any(part.isdigit() for name in left for part in name.split("."))
    assert of_kind(model, NoNorm)


def test_no_norm_holds_no_statistics() -> None:
    model = simplified("bert")
    norm = model.bert.encoder.layer[1].output.LayerNorm
    assert isinstance(norm, NoNorm)
    assert set(norm.state_dict()) == {"weight", "bias"}
    assert "simplifier" not in vars(norm)
    first, second = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    mixed = norm(3 * first - second + 2)
    expected = 3 * (norm(first) - norm.bias) - (norm(second) - norm.bias) + 2 * norm.weight + norm.bias
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(norm(torch.zeros(2, 32)), norm.bias.expand(2, 32))


def test_between_both_ends_the_outputs_are_mixed() -> None:
    model = tiny("bert")
    simplifier = measured(model)
    layer = model.bert.encoder.layer[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for step in (1, 4, 11):
        simplifier.advance(at(step))
        with torch.no_grad():
            outputs[step] = layer.output.LayerNorm(x), layer.intermediate.intermediate_act_fn(x)
    torch.testing.assert_close(outputs[1][1], nn.functional.gelu(x))
    torch.testing.assert_close(outputs[11][1], x.relu())
    for first, between, last in zip(outputs[1], outputs[4], outputs[11], strict=True):
        torch.testing.assert_close(between, 0.7 * first + 0.3 * last)


@pytest.mark.parametrize("bias", [True, False])
def test_no_norm_starts_as_the_line_of_least_squares(bias: bool) -> None:
    model = tiny("bert")
    norm = model.bert.encoder.layer[0].output.LayerNorm
    if not bias:
        norm.bias = None
    simplifier = Simplifier(BOTH, PrunableLayout.of(model))
    x = torch.randn(3, 50, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 32) + 1
    wanted = norm.train()(x).detach()
    simplifier.advance(at(11))
    found = norm(x)
    for feature in range(32):
        columns = [x[..., feature].flatten(), *([torch.ones(150)] if bias else [])]
        known = torch.stack(columns, 1)
        line = torch.linalg.lstsq(known, wanted[..., feature].flatten()[:, None]).solution
        torch.testing.assert_close(found[..., feature].flatten(), (known @ line)[:, 0], atol=1e-4, rtol=1e-4)


def test_a_feature_that_is_constant_makes_no_nan() -> None:
    model = tiny("bert")
    norm = model.bert.encoder.layer[0].output.LayerNorm
    simplifier = Simplifier(BOTH, PrunableLayout.of(model))
    wanted = norm.train()(torch.zeros(2, 3, 32)).detach()
    simplifier.advance(at(11))
    torch.testing.assert_close(norm(torch.zeros(2, 3, 32)), wanted)


def test_what_is_known_is_the_mean_over_batches_and_steps() -> None:
    model = tiny("bert")
    simplifier = Simplifier(BOTH, PrunableLayout.of(model))
    norm = model.bert.encoder.layer[0].output.LayerNorm.train()
    batches = torch.randn(4, 2, 5, 32, generator=torch.Generator().manual_seed(0)) + 1
    wanted = []
    for step in batches.unflatten(0, (2, 2)):  # two steps of two batches
        for batch in step:
            norm(batch)
            after = nn.functional.layer_norm(batch, (32,), eps=norm.eps)
            x, y = batch.flatten(0, 1), after.flatten(0, 1)
            covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
            wanted.append(torch.stack([x.mean(0), y.mean(0), covariance, x.var(0, correction=0)]))
        simplifier.advance(at(0))
    index = norm.simplifier[1]
    torch.testing.assert_close(simplifier.statistics[index], torch.stack(wanted).mean(0))  # the first steps count alike
    others = torch.cat([simplifier.statistics[:index], simplifier.statistics[index + 1 :]])
    assert torch.equal(others, torch.tensor(UNMEASURED)[:, None].expand_as(others))  # as if their layers were dropped


def test_at_the_end_nothing_is_measured() -> None:
    model = tiny("bert")
    simplifier = measured(model)
    simplifier.advance(at(11))
    before = simplifier.statistics.clone()
    with Recorder() as called:
        model.train()(**inputs_for(model, "right"))
    simplifier.advance(at(12))
    assert torch.equal(simplifier.statistics, before)
    assert sum("layer_norm" in name for name in called.names) == 1  # the embeddings'
    assert not any(word in name for name in called.names for word in ("var", "std", "gelu"))


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", [0, 4, 11])
def test_a_training_step_does_not_wait_for_the_device(step: int) -> None:
    model = tiny("bert")
    simplifier = measured(model)
    model.train()
    inputs = {"input_ids": inputs_for(model, "right")["input_ids"]}  # transformers waits for a mask with padding
    with NoHostSync():
        simplifier.advance(at(step))
        sum(value.sum() for value in tensors_of(model, inputs).values()).backward()  # type: ignore[union-attr]
        simplifier.advance(at(step + 1))
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_keeps_the_models_precision(dtype: torch.dtype) -> None:
    model = tiny("bert", dtype=dtype)
    simplifier = measured(model)
    for step in (4, 11):
        simplifier.advance(at(step))
        assert everything(model).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        simplifier.advance(at(4))
        assert everything(tiny_blended := model.float()).isfinite().all()
    assert tiny_blended is model


# -- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", DENSE)
def test_every_family_is_simplified_or_refused(model_type: str) -> None:
    model = tiny(model_type)
    layout = PrunableLayout.of(model)
    if model_type in RMS_NORMED:
        with pytest.raises(UserError, match=rf"no_norm is true, .* this '{model_type}' .*norms: \w*(RMS|T5Layer)Norm"):
            Simplifier(Simplification(no_norm=True), layout)
    else:
        assert len(Simplifier(Simplification(no_norm=True), layout).statistics) >= 2 * 3 - 1
    if model_type in NOT_GELU_BY_NAME:
        with pytest.raises(
            UserError, match=rf"relu is true, but this '{model_type}' model computes \w*(SiLU|GELU)\w*, and not"
        ):
            Simplifier(Simplification(relu=True), layout)
        return
    simplifier = Simplifier(Simplification(relu=True), layout)
    simplifier.amount = 1.0
    assert simplifier.harden()
    with torch.device("meta"):  # as its configuration says now
        again = type(model)(model.config)
    assert len(of_kind(again, nn.ReLU)) >= 3
    assert of_kind(again, nn.ReLU).keys() == of_kind(model, nn.ReLU).keys()


def test_what_is_relu_already_is_left_alone() -> None:
    simplifier = Simplifier(Simplification(relu=True), PrunableLayout.of(tiny("opt")))
    assert simplifier.harden() is False
    assert not of_kind(tiny("opt"), BlendedActivation)


# -- saved and loaded --------------------------------------------------------------------------------------------------

RELOAD = """
import sys, torch, bplightning, transformers
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    made = torch.load(folder / "made.pt")
    model = getattr(transformers, made["auto"]).from_pretrained(folder)
    with torch.no_grad():
        outputs = [value.flatten() for value in model(**made["inputs"]).values() if isinstance(value, torch.Tensor)]
    norms = sum("NoNorm" in type(module).__name__ for module in model.modules())
    print(folder.name, torch.equal(torch.cat(outputs), made["outputs"]), norms)
"""


def test_pruned_and_simplified_it_loads_in_a_fresh_process(tmp_path: Path) -> None:
    wanted = []
    for name in (*SOME, "bert-whole", "bert-masked-words"):
        model_type = name.partition("-")[0]
        auto = AutoModelForMaskedLM if name == "bert-masked-words" else auto_of(model_type)
        model = simplified(model_type, auto=auto)
        if name != "bert-whole":
            zero_randomly(model, "heads", seed=1, density=0.7)
            zero_randomly(model, "rows", seed=2, density=0.7)
        before = everything(model)
        small: Any = compact(model)
        torch.testing.assert_close(everything(small), before, atol=1e-4, rtol=1e-4)
        assert (small.num_parameters() < model.num_parameters()) == (name != "bert-whole")
        save_compact(small, tmp_path / name)
        made = {"auto": auto.__name__, "inputs": inputs_for(small, "right"), "outputs": everything(small)}
        torch.save(made, tmp_path / name / "made.pt")
        wanted.append(f"{name} True {len(of_kind(model, NoNorm))}")
    said = said_by(RELOAD, *(str(tmp_path / line.split()[0]) for line in wanted), cwd=tmp_path)
    assert [line for line in said.splitlines() if line in wanted] == wanted, said
    config = json.loads((tmp_path / "bart" / "config.json").read_text())
    assert config["activation_function"] == "relu"
    assert config[CONFIG_FIELD]["no_norm"] is True
    assert config[CONFIG_FIELD]["version"] == 4


def test_relu_alone_needs_no_field_of_ours(tmp_path: Path) -> None:
    model: Any = compact(simplified("bert", Simplification(relu=True, final_warmup=1)))
    save_compact(model, tmp_path / "compact")
    config = json.loads((tmp_path / "compact" / "config.json").read_text())
    assert config["hidden_act"] == "relu"
    assert "quantization_config" not in config


def test_loaded_it_is_compacted_again_and_stays_simple(tmp_path: Path) -> None:
    save_compact(compact(simplified("bert")), tmp_path / "first")  # type: ignore[arg-type]
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "first")
    simplifier = Simplifier(BOTH, PrunableLayout.of(model))  # nothing is left to do
    assert len(simplifier.statistics) == 0
    zero_randomly(model, "heads", seed=1)
    save_compact(compact(model), tmp_path / "second")  # type: ignore[arg-type]
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "second")
    assert len(of_kind(again, NoNorm)) == 6
    assert again.num_parameters() < model.num_parameters()


@pytest.mark.parametrize("value", [None, 1, "true"])
def test_a_broken_field_is_refused(tmp_path: Path, value: Any) -> None:
    save_compact(compact(simplified("bert")), tmp_path / "compact")  # type: ignore[arg-type]
    file = tmp_path / "compact" / "config.json"
    config = json.loads(file.read_text())
    config[CONFIG_FIELD]["no_norm"] = value
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="must have true or false for no_norm, got"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path / "compact")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_folders_of_before_are_read_as_they_were(tmp_path: Path, version: int) -> None:
    model = tiny("bert")
    zero_randomly(model, "heads", seed=1)
    small: Any = compact(model)
    del small.config.compaction["stream"]
    if version < 3:
        del small.config.compaction["no_norm"]
    if version == 1:
        del small.config.compaction["columns"]
    small.config.compaction["version"] = version
    save_compact(small, tmp_path / "compact")
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "compact")
    assert torch.equal(everything(again), everything(small))


def test_no_norm_beside_norms_that_narrow_is_refused() -> None:
    layout = PrunableLayout.of(tiny("bert"))
    CoFi().attach(layout)
    with pytest.raises(UserError, match=r"the strategy narrows the model's norms, .*: leave no_norm out, or"):
        Simplifier(Simplification(no_norm=True), layout)
    layout = PrunableLayout.of(tiny("bert"))
    CoFi(prune_hidden=False).attach(layout)
    assert Simplifier(Simplification(no_norm=True), layout).measured.numel()


def test_a_blend_is_not_compacted() -> None:
    model = tiny("bert")
    simplifier = measured(model)
    simplifier.advance(at(10))
    before = everything(model)
    assert simplifier.harden() is False
    assert torch.equal(everything(model), before)
    with pytest.raises(UserError, match="not wholly simplified: its training ended before simplification"):
        compact(model)


# -- training ----------------------------------------------------------------------------------------------------------


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(
        default_root_dir=folder, **{**quiet, "enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    )


def module_for(folder: Path, settings: Simplification | None = BOTH) -> PruningModule:
    window, tiles = PruningWindow(final_warmup=1), {"attention": "16x16"}
    strategy = Hybrid(window=window, granularity=tiles, regularization=30, score_learning_rate=0.46)
    return PruningModule(TinyTask(folder), strategy, learning_rate=2e-3, warmup=2, simplification=settings)


def test_masked_and_simplified_it_trains_and_ends_as_both(tmp_path: Path) -> None:
    module = module_for(tmp_path)
    run = trainer(tmp_path, max_epochs=12)
    run.fit(module, datamodule=module.task)
    assert run.callback_metrics["simplified"] == 1
    assert run.callback_metrics["val_accuracy"] > 60
    module.eval()
    before = everything(module.model)
    model = module.harden()
    assert torch.equal(everything(model), before)
    small: Any = compact(model)
    assert small.num_parameters() < model.num_parameters()
    save_compact(small, tmp_path / "compact")
    model.save_pretrained(tmp_path / "masked")  # that folder says what it is, too
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "masked")
    assert torch.equal(everything(again), before)


def test_resumed_it_is_the_run_that_was_interrupted(tmp_path: Path) -> None:
    options = {"max_epochs": 2, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    whole = module_for(tmp_path)
    pl.seed_everything(1)
    trainer(tmp_path, **options).fit(whole, datamodule=whole.task)
    first = module_for(tmp_path)
    pl.seed_everything(1)
    run = trainer(tmp_path, **options, callbacks=[Stop(tmp_path / "half.ckpt", step=5)])
    with pytest.warns(UserWarning, match="training ended at optimizer step 5 of 12, before Hybrid reached its target"):
        run.fit(first, datamodule=first.task)
    assert 0 < first.simplifier.amount < 1  # type: ignore[union-attr]
    second = module_for(tmp_path)
    trainer(tmp_path, **options).fit(second, datamodule=second.task, ckpt_path=tmp_path / "half.ckpt")
    assert second.simplifier.amount == 1  # type: ignore[union-attr]
    expected, got = whole.state_dict(), second.state_dict()
    assert "simplifier.statistics" in expected
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


class Stop(pl.Callback):
    """Saves a checkpoint after a step, and ends training."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The checkpoint is of between two optimizer steps."""
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            trainer.limit_train_batches = 0


def test_a_checkpoint_brings_the_blend_back_without_a_step(tmp_path: Path) -> None:
    module = module_for(tmp_path)
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(module, datamodule=module.task)
    again = module_for(tmp_path)
    again.configure_model()
    again.load_state_dict(module.state_dict())
    assert torch.equal(everything(again.model.eval()), everything(module.model.eval()))
    assert again.simplifier.amount == 1  # type: ignore[union-attr]
    without = module_for(tmp_path, None)
    without.configure_model()
    assert not any("simplif" in name for name in without.state_dict())


def test_a_checkpoint_is_best_only_once_it_is_simple(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), PruningStrategy(), warmup=2, simplification=BOTH)
    reached = []
    run = trainer(tmp_path, max_steps=12, limit_val_batches=0, callbacks=[Watch(reached)])
    run.fit(module, datamodule=module.task)
    assert reached == [False] * 9 + [True] * 3


class Watch(pl.Callback):
    """Notes whether the target is reached after each step."""

    def __init__(self, reached: list[bool]) -> None:
        self.reached = reached

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """A note."""
        self.reached.append(pl_module.target_reached())


def test_the_dense_baseline_is_not_simplified(tmp_path: Path) -> None:
    folder = train_baseline(trainer(tmp_path, max_steps=1), module_for(tmp_path), tmp_path / "baseline")
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_act"] == "gelu"
    assert CONFIG_FIELD not in config


@pytest.mark.parametrize("name", ["initial_warmup", "final_warmup"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"simplification's {name} is -1; it must be 0 or more"):
        Simplification(**{name: -1.0})  # type: ignore[arg-type]


def test_a_schedule_without_room_names_its_own_options(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), PruningStrategy(), warmup=2, simplification=Simplification(relu=True))
    with pytest.raises(UserError, match=r"make model\.warmup, simplification\.initial_warmup or simplification\.f"):
        trainer(tmp_path, max_steps=12).fit(module, datamodule=module.task)


def test_the_report_is_told_what_became_simpler() -> None:
    assert Simplification().settings() is None
    expected = {"no_norm": True, "relu": True, "initial_warmup": 1.0, "final_warmup": 1.0}
    assert BOTH.settings() == expected
