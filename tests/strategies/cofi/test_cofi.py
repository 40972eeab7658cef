"""CoFi: its gates leave what is expected, are held to the size that was asked for, and end up in the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_families import padded_inputs, tiny
from torch import Tensor, nn
from transformers import AutoModel

from bplightning import compact
from bplightning.compaction.skipped_sublayers import is_skipped
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.cofi.gates import Part, kept_in_evaluation, left
from bplightning.strategies.l0 import chance_open, hard_concrete

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
STEPS, WARMUP = 120, 6
END = STEPS - 4 * WARMUP


def attached(
    dtype: torch.dtype = torch.float32, model_type: str = "bert", **options: Any
) -> tuple[nn.Module, CoFi, PrunableLayout]:
    """A tiny model in training mode, but without dropout, before its first step."""
    model = tiny(model_type, dtype=dtype, **SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    strategy = CoFi(**options)
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    return model, strategy, layout


def train(model: nn.Module, strategy: CoFi, *, last: int = STEPS, each: Any = lambda: None) -> None:
    groups = strategy.parameter_groups(total_steps=STEPS)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())}, *groups], lr=1e-3, weight_decay=0.0)
    for step in range(last):
        strategy.advance(Progress(step, STEPS, WARMUP))
        loss = model(**padded_inputs("right", seed=step)).start_logits.softmax(-1)[:, 2].neg().mean()
        (loss + strategy.penalty()).backward()
        optimizer.step()
        strategy.after_optimizer_step()
        optimizer.zero_grad()
        each()
    strategy.advance(Progress(last, STEPS, WARMUP))


def scatter(strategy: CoFi) -> None:
    """Gates that are shut, open and between."""
    torch.manual_seed(0)
    strategy._enter(begun=True, landed=False)
    with torch.no_grad():
        for scores in strategy._all_scores():
            scores.normal_(std=2.0)
        strategy._size.set_kept()


def logits(model: nn.Module, **options: Any) -> Tensor:
    return cast(Tensor, model(**padded_inputs("right", **options)).start_logits)


# -- size --------------------------------------------------------------------------------------------------------------


def test_the_expected_size_is_the_mean_over_drawn_masks() -> None:
    torch.manual_seed(0)
    draws = 20_000
    dimensions = torch.randn(24)
    scores = [(300, torch.randn(()), torch.randn(4)), (700, torch.randn(()), torch.randn(48))]
    parts = [Part(weights, chance_open(own), chance_open(entries)) for weights, own, entries in scores]
    expected = left(parts, dimensions=chance_open(dimensions))

    def drawn(values: Tensor) -> Tensor:
        return (hard_concrete(values, torch.rand(draws, *values.shape)) > 0).float()

    kept = sum(weights * drawn(own) * drawn(entries).mean(1) for weights, own, entries in scores)
    counted = drawn(dimensions).mean(1) * kept / 1000
    assert float(counted.mean()) == pytest.approx(float(expected), abs=4 * float(counted.std()) / draws**0.5)
    assert float(left(parts, dimensions=None)) * float(chance_open(dimensions).mean()) == pytest.approx(float(expected))


def test_evaluation_keeps_as_many_as_expected_those_of_the_highest_scores() -> None:
    torch.manual_seed(0)
    scores = torch.randn(200) * 3
    kept = kept_in_evaluation(scores)
    assert int(kept.sum()) == round(float(chance_open(scores).sum()))
    assert scores[kept].min() > scores[~kept].max()


@pytest.mark.parametrize("target", [0.6, 0.3])
def test_the_penalty_holds_the_expected_size_and_landing_the_size(target: float) -> None:
    model, strategy, layout = attached(target=Target(density=target))
    expected: list[float] = []
    train(model, strategy, last=END, each=lambda: expected.append(float(strategy._size.expected().detach())))
    assert expected[-1] == pytest.approx(target, abs=0.03)
    head = layout.attention[0]
    one_head = sum(member.weight(model).numel() for member in head.members) / head.heads / layout.weights()
    density = float(strategy.density()["total"])
    assert target - one_head <= density <= target
    strategy.harden(layout)
    nonzero = sum(int(member.weight(model).count_nonzero()) for member in layout.members)
    assert nonzero / layout.weights() == pytest.approx(density, abs=1e-6)


def test_landing_opens_sublayers_where_what_is_in_them_is_not_enough() -> None:
    _, strategy, _ = attached(target=Target(density=0.4))
    with torch.no_grad():
        for sublayers in strategy._sublayers:
            sublayers.scores.copy_(torch.tensor([-4.0, -3.0]))
    strategy.advance(Progress(STEPS, STEPS, WARMUP))
    assert 0.3 <= float(strategy.density()["total"]) <= 0.4


def test_a_hardened_model_is_saved_only_compact(tmp_path: Path) -> None:
    model, strategy, layout = attached()
    scatter(strategy)
    strategy.harden(layout)
    whole: Any = model
    whole.save_pretrained(tmp_path / "hardened")
    with pytest.raises(UserError, match=r"saved hardened but not compact, .*: compact it first"):
        type(whole).from_pretrained(tmp_path / "hardened")
    smaller: Any = compact(model)
    smaller.save_pretrained(tmp_path / "compact")
    torch.testing.assert_close(logits(type(whole).from_pretrained(tmp_path / "compact")), logits(smaller.eval()))


# -- the gates ---------------------------------------------------------------------------------------------------------


def test_gates_are_one_before_pruning_and_learn_nothing() -> None:
    model, strategy, _ = attached()
    plain = tiny("bert", **SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    strategy.advance(Progress(WARMUP - 1, STEPS, WARMUP))
    assert torch.equal(logits(model), logits(plain))
    (logits(model).sum() + strategy.penalty()).backward()
    assert all(not parameter.grad.any() for parameter in strategy.parameters())  # but there, for distributed training


def test_training_draws_by_step_and_evaluation_does_not() -> None:
    model, strategy, _ = attached()
    scatter(strategy)
    outputs = {}
    for step in (20, 21, 20):
        strategy.advance(Progress(step, STEPS, WARMUP))
        first, second = logits(model), logits(model)
        assert not torch.equal(first, second)  # of two batches of one step
        assert torch.equal(outputs.setdefault(step, first), first)
    assert not torch.equal(outputs[20], outputs[21])
    model.eval()
    assert torch.equal(logits(model), logits(model))


def test_gates_rest_once_they_have_landed() -> None:
    model, strategy, _ = attached()
    scatter(strategy)
    optimizer = torch.optim.SGD([*model.parameters(), *strategy.parameters()], lr=0.01, momentum=0.9)
    for step in range(END - 3, END):
        logits(model).square().mean().backward()
        optimizer.step()
        strategy.advance(Progress(step + 1, STEPS, WARMUP))
    assert strategy.phase.landed
    before = copy.deepcopy([*strategy._all_scores(), *(mask.kept for mask in strategy.all_masks)])
    weight = model.qa_outputs.weight.clone()

    for step in range(END, END + 3):
        assert torch.equal(logits(model), logits(model))
        (logits(model).square().mean() + strategy.penalty()).backward()
        optimizer.step()
        strategy.after_optimizer_step()
        strategy.advance(Progress(step + 1, STEPS, WARMUP))
    after = [*strategy._all_scores(), *(mask.kept for mask in strategy.all_masks)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not torch.equal(weight, model.qa_outputs.weight)


@pytest.mark.parametrize(("model_type", "prune_hidden"), [("bert", False), ("roberta", True), ("electra", True)])
def test_gates_between_fold_into_the_weights_exactly(model_type: str, prune_hidden: bool) -> None:
    model, strategy, layout = attached(torch.float64, model_type, prune_hidden=prune_hidden)
    strategy.double()
    scatter(strategy)
    with torch.no_grad():
        for sublayers in strategy._sublayers:
            sublayers.scores.copy_(torch.tensor([-4.0, 1.0]))
    strategy._size.set_kept()
    fractions = torch.cat([mask.gate(mask.scores, None).flatten() for mask in strategy.all_masks])  # type: ignore[misc]
    assert ((fractions > 0.01) & (fractions < 0.99)).any()
    model.eval()
    with torch.no_grad():
        expected = logits(model)
        strategy.harden(layout)
        assert torch.equal(logits(model), expected)
        assert is_skipped(model, layout.attention[0])
        small = compact(model)
        torch.testing.assert_close(logits(small), expected, rtol=0, atol=1e-10)
    stream = small.config.compaction["stream"]  # type: ignore[union-attr]
    assert (stream["width"] < SHAPE["hidden_size"]) is prune_hidden
    assert stream["skipped"] == ["encoder.0.self", "encoder.0.feed_forward"]
    widths = small.config.compaction["widths"]  # type: ignore[union-attr]
    assert widths["encoder.0.self"] == 0
    assert widths["encoder.1.self"]
    assert 0 < widths["encoder.1.feed_forward"] < SHAPE["intermediate_size"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_narrower_is_refused_with_cofi_s_way_out() -> None:
    layout = PrunableLayout.of(tiny("bert", auto=AutoModel))
    with pytest.raises(UserError, match=r"cannot be made narrower: .* With prune_hidden false cofi leaves the width"):
        CoFi().attach(layout)
    CoFi(prune_hidden=False).attach(layout)


@pytest.mark.parametrize("model_type", ["distilbert", "llama", "t5", "mpnet"])
def test_other_families_are_refused(model_type: str) -> None:
    model = tiny(model_type)
    with pytest.raises(UserError, match=rf"cofi prunes encoders .* Of a '{model_type}' model .* such as hybrid or l0"):
        CoFi().attach(PrunableLayout.of(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Target(density=1)}, "target.density is 1, which keeps everything"),
        ({"target": Target(flops=0.5)}, "target.flops is 0.5, which cofi cannot prune to: it takes target.density"),
        ({"alpha_layer": -0.5}, "alpha_layer is -0.5; it must be 0 or more"),
        ({"ramp": 0.0}, "ramp is 0; it is a part of the schedule"),
        ({"gate_learning_rate": 0.0}, "gate_learning_rate is 0; it must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CoFi(**options)


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    _, strategy, _ = attached()
    state = strategy.state_dict()
    state["target"] = state.pop("target_now") * 0.7
    strategy.load_state_dict(state)
    assert float(strategy.target_now) == pytest.approx(0.7)
    assert strategy.target == Target(density=0.4)
