"""L0: its gates have the distribution they should, are drawn once a batch, and end up in the weights."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from tiny_families import padded_inputs, tiny
from tiny_task import TinyTask
from torch import Tensor, nn
from torch.func import functional_call

from bplightning import compact
from bplightning.cli import main
from bplightning.contracts.strategy import Progress
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import freeze_masks, remove_masks, unfreeze_masks
from bplightning.strategies.l0 import L0, chance_open, hard_concrete
from bplightning.testing.syncs import NoHostSync
from bplightning.training.module import PruningModule

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
GRANULARITY = {"attention": "16x16", "feed_forward": "unit"}


def attached(**options: Any) -> tuple[nn.Module, L0, PrunableLayout]:
    """A tiny model in training mode, but without dropout, whose gates are shut, open and between."""
    model = tiny("bert", **SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    strategy = L0(**({"granularity": GRANULARITY} | options))
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    with torch.no_grad():
        for mask in strategy.all_masks:
            mask.scores.normal_(std=2.0)
    strategy.advance(Progress(100, 100, warmup_steps=5))
    return model, strategy, layout


def logits(model: nn.Module, **options: Any) -> Tensor:
    return model(**padded_inputs("right", **options)).start_logits


# -- the gates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [-3.0, -1.5986, 0.0, 2.197, 4.0])
def test_gates_are_distributed_as_the_closed_form_says(score: float) -> None:
    torch.manual_seed(0)
    draws = 200_000
    gates = hard_concrete(torch.full((draws,), score), torch.rand(draws))
    above_0 = 1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1) - score))
    is_1 = 1 / (1 + math.exp(2 / 3 * math.log(1.1 / 0.1) - score))
    median = min(max(1.2 / (1 + math.exp(-score / (2 / 3))) - 0.1, 0.0), 1.0)
    four_deviations = 4 * 0.5 / math.sqrt(draws)
    assert float((gates > 0).float().mean()) == pytest.approx(above_0, abs=four_deviations)
    assert float((gates == 1).float().mean()) == pytest.approx(is_1, abs=four_deviations)
    assert float(gates.median()) == pytest.approx(median, abs=0.02)
    assert float(chance_open(torch.tensor(score))) == pytest.approx(above_0)
    assert 0 <= float(gates.min()) <= float(gates.max()) <= 1


def test_random_numbers_are_held_a_millionth_off_their_ends() -> None:
    scores = torch.tensor([0.0, 0.0, 12.0, 15.0, -12.0], requires_grad=True)  # logit(1e-6) is -13.8
    gates = hard_concrete(scores, torch.tensor([0.0, 1 - 2**-24, 0.0, 0.0, 1 - 2**-24]))
    gates.sum().backward()
    assert gates.tolist() == pytest.approx([0, 1, 0, 0.9263, 1], abs=1e-3)
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("granularity", [GRANULARITY, {"attention": "head", "feed_forward": "element"}])
def test_gradients_are_those_of_the_formula(granularity: dict[str, str], training: bool) -> None:
    """Against autograd through a plain model whose weights are the products, written out."""
    model, strategy, _ = attached(granularity=granularity)
    model.double().train(training)
    strategy.double()
    logits(model, seed=5).square().sum().backward()
    plain = tiny("bert", **SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    plain.load_state_dict(dict(model.named_parameters()))
    weights, scores = dict(plain.named_parameters()), []
    for mask in strategy.all_masks:
        scores.append(mask.scores.detach().clone().requires_grad_())
        if training:
            u = mask.noise
            gate = torch.sigmoid((torch.log(u) - torch.log(1 - u) + scores[-1]) / (2 / 3))
        else:
            gate = torch.sigmoid(scores[-1])
        gate = torch.minimum(torch.maximum(1.2 * gate - 0.1, torch.tensor(0.0)), torch.tensor(1.0))
        for cover in mask.covers:
            grid, weight = gate.T if cover.transposed else gate, weights[cover.member.name]
            tile = torch.ones(weight.shape[0] // grid.shape[0], weight.shape[1] // grid.shape[1]).double()
            weights[cover.member.name] = weight * torch.kron(grid, tile)
    written_out = functional_call(plain, weights, kwargs=padded_inputs("right", seed=5)).start_logits
    written_out.square().sum().backward()
    for mask, expected in zip(strategy.all_masks, scores, strict=True):
        torch.testing.assert_close(mask.scores.grad, expected.grad)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
    gates = torch.cat([hard_concrete(mask.scores, mask.noise).flatten() for mask in strategy.all_masks])
    for kind in (gates == 0, gates == 1, (gates > 0) & (gates < 1)):
        assert kind.any()


# -- when they are drawn -----------------------------------------------------------------------------------------------


def test_gates_are_drawn_once_a_batch_by_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    model, strategy, layout = attached()
    strategy.advance(Progress(3, 100, warmup_steps=2))
    first = logits(model)
    query = layout.attention[0].query
    read = [query.view(model.get_submodule(query.module).weight) for _ in range(2)]
    assert torch.equal(*read)
    assert not torch.equal(logits(model), first)  # the next batch
    assert not torch.equal(query.view(model.get_submodule(query.module).weight), read[0])
    torch.manual_seed(7)  # each rank has its own, for dropout
    strategy.advance(Progress(3, 100, warmup_steps=2))
    assert torch.equal(logits(model), first)
    strategy.advance(Progress(4, 100, warmup_steps=2))
    assert not torch.equal(logits(model), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    strategy.advance(Progress(3, 100, warmup_steps=2))
    assert not torch.equal(logits(model), first)


def test_evaluation_is_not_random() -> None:
    model, strategy, _ = attached()
    logits(model)  # a draw, which must not stay in force
    random_state = torch.get_rng_state()
    model.eval()
    first = logits(model)
    assert torch.equal(logits(model), first)
    assert torch.equal(torch.get_rng_state(), random_state)
    scores = strategy.all_masks[0].scores.detach()
    expected = (1.2 / (1 + torch.exp(-scores)) - 0.1).clamp(0, 1)
    weight = model.bert.encoder.layer[0].attention.self.query
    torch.testing.assert_close(weight.weight, weight._parameters["weight"] * torch.kron(expected, torch.ones(16, 16)))


def test_frozen_masks_are_evaluations_though_a_batch_is_being_trained_on() -> None:
    model, _, _ = attached()
    logits(model)
    freeze_masks(model)
    with torch.no_grad():
        frozen = logits(model.eval())
    unfreeze_masks(model)
    assert torch.equal(logits(model), frozen)


def test_what_begins_is_the_dense_model_with_weights_a_fiftieth_smaller() -> None:
    model = tiny("bert", **SHAPE)
    L0().attach(PrunableLayout.of(model))
    module = model.bert.encoder.layer[0].intermediate.dense
    torch.testing.assert_close(module.weight, 0.98 * module._parameters["weight"], rtol=1e-4, atol=0)


# -- what becomes of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", [GRANULARITY, {"attention": "head", "feed_forward": "element"}])
def test_hardened_and_compact_are_the_masked_model_fractions_and_all(granularity: dict[str, str]) -> None:
    model, strategy, layout = attached(granularity=granularity)
    masked = logits(model.eval()).detach()
    density = {role: float(value) for role, value in strategy.density().items()}
    logits(model.train())  # hardening in the middle of training: evaluation's gates count
    before = {member.name: member.weight(model).clone() for member in layout.members}
    strategy.harden(layout)
    assert not model._forward_pre_hooks
    assert torch.equal(logits(model.eval()), masked)
    torch.testing.assert_close(logits(compact(model)), masked, rtol=1e-5, atol=1e-5)
    left = sum(int(member.weight(model).count_nonzero()) for member in layout.members)
    assert density["total"] == pytest.approx(left / layout.weights(), abs=1e-6)
    assert 0.5 < density["total"] < 1
    shares = torch.cat([(member.weight(model) / before[member.name]).flatten() for member in layout.members])
    assert ((shares > 0.01) & (shares < 0.99)).any()


def test_a_copy_has_gates_of_its_own() -> None:
    model, strategy, _ = attached()
    logits(model)
    twin = copy.deepcopy(model)
    remove_masks(twin)
    model.eval()
    torch.testing.assert_close(logits(twin.eval()), logits(model))
    again = copy.deepcopy(model.train())
    assert not torch.equal(logits(again), logits(again))
    assert (
        strategy.all_masks[0].noise is None
    )  # the copy drew for itself: what removed masks from `twin` settled twin's


def test_what_is_exactly_zero_in_evaluation_is_pruned() -> None:
    _, strategy, _ = attached()
    with torch.no_grad():
        for mask in strategy.all_masks:
            mask.scores.fill_(-2.39)  # evaluation's gate is 0 from logit(1/12) = -2.398 down
        strategy.all_masks[0].scores[0] = -2.41
    strategy.advance(Progress(100, 100, warmup_steps=5))
    kept = strategy.all_masks[0].kept
    assert not kept[0].any()
    assert kept[1:].all()
    assert all(mask.kept.all() for mask in strategy.all_masks[1:])


# -- penalty, schedule, settings ---------------------------------------------------------------------------------------


def test_penalty_is_the_mean_over_masks_then_roles() -> None:
    weights = {"attention": 3.0, "feed_forward": 0.5}
    _, strategy, _ = attached(regularization=10.0, role_weights=weights)
    with torch.no_grad():
        for index, mask in enumerate(strategy.all_masks):
            mask.scores.fill_(float(index) - 5)
    chance = [1 / (1 + math.exp(-(index - 5 - 2 / 3 * math.log(0.1 / 1.1)))) for index in range(10)]
    by_role: dict[str, list[float]] = {}
    for mask, value in zip(strategy.all_masks, chance, strict=True):
        by_role.setdefault(mask.role, []).append(value)
    expected = 10.0 * (3.0 * sum(by_role["attention"]) / 8 + 0.5 * sum(by_role["feed_forward"]) / 2) / 2
    assert float(strategy.penalty().detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("initial", "expected"), [(0.0, [0, 0, 8.75, 10, 10]), (10.0, [10] * 5)])
def test_the_penalty_rises_on_the_cubic_schedule(initial: float, expected: list[float]) -> None:
    _, strategy, _ = attached(regularization=10.0, initial_regularization=initial)
    seen = []
    for step in (0, 10, 45, 80, 100):
        strategy.advance(Progress(step, 100, warmup_steps=10))
        seen.append(float(strategy.metrics()["penalty_weight"]))
    assert seen == pytest.approx(expected)
    assert [strategy.target_reached(Progress(step, 100, 10)) for step in (79, 80)] == [False, True]


@pytest.mark.parametrize(("steps", "expected"), [(55_320, 0.1), (100, 6 * 4.5949 / 100)])
def test_score_learning_rate_suits_the_length_of_the_run(steps: int, expected: float) -> None:
    (group,) = attached()[1].parameter_groups(total_steps=steps)
    assert group["lr"] == pytest.approx(expected, rel=1e-4)
    (group,) = attached(score_learning_rate=0.5)[1].parameter_groups(total_steps=steps)
    assert group["lr"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularization": -1.0}, r"regularization is -1; it must be 0 or more"),
        ({"initial_regularization": float("nan")}, r"initial_regularization is nan; it must be 0 or more"),
        ({"score_learning_rate": 0.0}, r"score_learning_rate is 0; it must be above 0"),
        ({"granularity": {"attention": "32"}}, r"granularity '32' is not known"),
        ({"role_weights": {"heads": 1.0}}, r"role_weights is given for 'heads', which is no role"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        L0(**options)


def test_n_of_m_neighbours_are_refused() -> None:
    with pytest.raises(UserError, match="use magnitude or movement"):
        attached(granularity={"attention": "2:4"})


def test_a_training_step_never_waits_for_the_host() -> None:
    model, strategy, _ = attached()
    ids = padded_inputs("right")["input_ids"]
    with NoHostSync():
        strategy.advance(Progress(3, 100, warmup_steps=2))
        (model(input_ids=ids).start_logits.square().mean() + strategy.penalty()).backward()
        strategy.density()


# -- in a run ----------------------------------------------------------------------------------------------------------


class Draws(Callback):
    """What was drawn for each batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        self.seen.append(float(pl_module.strategy.all_masks[0].noise.sum()))


class SaveAt(Checkpoint):
    """A checkpoint after the eighth batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx == 7:
            trainer.save_checkpoint(self.path, weights_only=False)


def train(folder: Path, *, resume: Path | None = None) -> tuple[list[float], dict[str, Tensor]]:
    """An epoch of 12 batches, two to an optimizer step, with a validation in the middle."""
    torch.manual_seed(1)
    task = TinyTask(folder, hidden_size=16, intermediate_size=32)
    module = PruningModule(
        task, L0(window=PruningWindow(final_warmup=2), granularity={"attention": "4x4"}), learning_rate=1e-3
    )
    draws = Draws()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2,
        val_check_interval=5,
        callbacks=[draws, SaveAt(folder / "eighth.ckpt")] if resume is None else [draws],
        enable_checkpointing=resume is None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=task, ckpt_path=resume)
    return draws.seen, module.state_dict()


def test_each_batch_draws_anew_and_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    drawn, end = train(tmp_path)
    assert len(set(drawn)) == 12  # two batches of one optimizer step too
    drawn_again, end_again = train(tmp_path, resume=tmp_path / "eighth.ckpt")
    assert drawn_again == drawn[8:]
    for name, value in end.items():
        assert torch.equal(end_again[name], value), name


USER_FILE = """
from pathlib import Path
from tiny_task import TinyTask


class Tiny(TinyTask):
    def __init__(self):
        super().__init__(Path(), intermediate_size=64, max_position_embeddings=160)
"""


def test_fit_ends_with_a_compact_model_that_scores_as_the_masked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user_l0.py").write_text(USER_FILE)
    monkeypatch.delitem(sys.modules, "user_l0", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ["--task", "user_l0.Tiny", "--strategy", "l0", "--strategy.granularity.attention", "head"]
    options += ["--strategy.granularity.feed_forward", "unit", "--strategy.score_learning_rate", "1"]
    options += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--model.learning_rate", "1e-3"]
    main(["fit", *options, "--trainer.num_sanity_val_steps", "0"])
    run = tmp_path / "runs" / "tiny-l0" / "version_0"
    report = json.loads((run / "report.json").read_text())
    assert report["strategy"] == "l0"
    assert report["metrics"]["masked"] == report["metrics"]["compact"]
    assert 0 < report["density"]["encoder_linear"] < 1
    assert report["parameters"]["compact"]["all"] < report["parameters"]["dense"]["all"]
