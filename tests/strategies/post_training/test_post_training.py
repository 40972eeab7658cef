"""What one-shot pruning by heads and units promises: gradients, budgets, gates that bring layers nearer, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from made_tables import made_table
from tiny_families import tiny
from transformers import AutoModelForCausalLM

from bplightning import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.plan import CompactionPlan
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import measure
from bplightning.strategies.one_shot_taylor import OneShotTaylor
from bplightning.strategies.post_training import gate_tuning
from bplightning.strategies.post_training.gate_tuning import layer_of, tuned_gates
from bplightning.strategies.post_training.post_training import PostTraining
from bplightning.strategies.shared.budgeted import Budgeted
from bplightning.strategies.shared.head_gates import gated, gradients_by_example, writers_seen
from bplightning.strategies.shared.size_targets import example_inputs
from bplightning.testing.strategy_contract import calibrate, example_loss
from bplightning.testing.tiny_model import padded_inputs, tiny_bert

BATCHES = [padded_inputs(seed=seed) for seed in range(4)]
END = Progress(1, 1, warmup_steps=0)


def attached(strategy: Budgeted) -> tuple[Any, PrunableLayout]:
    model = tiny_bert()
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    return model, layout


def test_gradients_are_those_of_each_example_alone() -> None:
    model, layout = attached(PostTraining())
    found, order = gradients_by_example(model, layout.groups, BATCHES[:1], example_loss)
    rows = [{name: value[row : row + 1] for name, value in BATCHES[0].items()} for row in range(3)]
    alone, _ = gradients_by_example(model, layout.groups, rows, example_loss)
    assert order == ["encoder.0.self", "encoder.0.feed_forward", "encoder.1.self", "encoder.1.feed_forward"]
    for name, gradients_EN in found.items():
        torch.testing.assert_close(gradients_EN, alone[name], rtol=1e-3, atol=1e-6)


def test_what_is_never_computed_is_missed_by_no_loss() -> None:
    """The cross-attention of a decoder that is used without an encoder."""
    model = tiny("marian", auto=AutoModelForCausalLM)
    groups = PrunableLayout.of(model).groups
    inputs = {"input_ids": BATCHES[0]["input_ids"]}
    found, order = gradients_by_example(model, groups, [inputs], lambda outputs, batch: outputs.logits.square().mean())
    cross = [group.name for group in groups if group.name.endswith("cross")]
    assert cross
    assert not set(cross) & set(order)
    for name, gradients_EN in found.items():
        assert gradients_EN.any() == (name not in cross)


def test_gradients_are_what_the_loss_changes_by() -> None:
    """Against the loss itself, of a head's and a unit's columns made a little smaller."""
    model, layout = attached(PostTraining())
    model.double()
    found, _ = gradients_by_example(model, layout.groups, BATCHES[:1], example_loss)
    tiny = 1e-5
    for group, columns in ((layout.attention[1], slice(16, 32)), (layout.feed_forward[0], slice(1, 2))):
        weight_OC = group.members[-1].weight(model)
        losses = []
        with torch.no_grad():
            for factor in (1 + tiny, (1 - tiny) / (1 + tiny)):
                weight_OC[:, columns] *= factor
                losses.append(float(example_loss(model(**BATCHES[0]), BATCHES[0])))
            weight_OC[:, columns] /= 1 - tiny
        assert float(found[group.name][:, 1].mean()) == pytest.approx((losses[0] - losses[1]) / (2 * tiny), rel=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_budget_is_kept_to_a_unit(share: float) -> None:
    strategy = PostTraining(target=Target(flops=share))
    model, layout = attached(strategy)
    inputs = example_inputs(model)
    dense = measure.flops(tiny_bert(), inputs)
    calibrate(model, strategy)
    strategy.advance(END)
    strategy.harden(layout)
    left = measure.flops(compact(model), inputs) / dense
    a_unit = (1 - strategy.size_target.always) / 2 / 48  # type: ignore[attr-defined]  more than one costs: heads are units too
    assert share - a_unit < left <= share


def test_a_speed_up_is_kept_by_the_table(tmp_path: Path) -> None:
    model = tiny_bert()
    layout = PrunableLayout.of(model)
    table = made_table(layout, bent=0.1)
    table.save(tmp_path / "table.json")
    strategy = PostTraining(target=Target(latency_speedup=1.8, latency_table=str(tmp_path / "table.json")))
    strategy.attach(layout)
    calibrate(model, strategy)
    strategy.advance(END)
    strategy.harden(layout)
    plan = CompactionPlan.of(model)
    kept = [("attention", len(each)) for _, each, _ in plan.heads]
    kept += [("feed_forward", len(each)) for _, each, _ in plan.units]
    assert 1.8 <= table.dense_ms / table.milliseconds(kept) < 1.9


def test_what_is_lost_least_goes_whatever_its_layer() -> None:
    """A layer's heads and units that the loss does not feel go first."""
    strategy = PostTraining(target=Target(flops=0.55), rearrange=False, tune=False)
    model, layout = attached(strategy)
    with torch.no_grad():
        for group in (layout.attention[0], layout.feed_forward[1]):
            group.members[-1].weight(model).mul_(1e-4)
    calibrate(model, strategy)
    strategy.advance(END)
    kept = {group.name: float(strategy.mask(group).kept.float().mean()) for group in layout.groups}
    assert kept["encoder.0.self"] < kept["encoder.1.self"]
    assert kept["encoder.1.feed_forward"] < kept["encoder.0.feed_forward"]


def half(layout: PrunableLayout) -> dict[str, torch.Tensor]:
    """Every other head and unit."""
    sizes = {group.name: group.members[-1].weight(layout.model).shape[1] for group in layout.feed_forward}
    sizes |= {group.name: group.heads for group in layout.attention}
    return {name: torch.arange(size) % 2 == 0 for name, size in sizes.items()}


def test_tuned_layers_come_nearer_to_the_dense_stream() -> None:
    model = tiny_bert()
    layout = PrunableLayout.of(model)
    order = [group for pair in zip(layout.attention, layout.feed_forward, strict=True) for group in pair]
    kept = half(layout)
    gates = tuned_gates(model, order, kept, BATCHES)
    for index, group in enumerate(order):
        weight_OC = group.members[-1].weight(model)
        errors = []
        for own in (gates[group.name], kept[group.name].float()):
            error = 0.0
            for batch in BATCHES:
                with torch.no_grad():
                    _, dense_LO = layer_of(model, order[: index + 1], {}, batch)
                    given_LC, stream_LO = layer_of(model, order[: index + 1], gates, batch)
                    lost_LO = (given_LC - gated(given_LC, own[None])) @ weight_OC.T
                    error += float((stream_LO - lost_LO - dense_LO).square().sum())
            errors.append(error)
        assert errors[0] < errors[1], group.name
        assert gates[group.name][~kept[group.name]].eq(0).all()


def test_padding_is_not_rebuilt() -> None:
    model, layout = attached(PostTraining())
    real = int(BATCHES[0]["attention_mask"].sum())
    given_LC, stream_LO = layer_of(model, layout.feed_forward[:1], {}, BATCHES[0])
    assert len(given_LC) == len(stream_LO) == real < BATCHES[0]["input_ids"].numel()


def test_the_stream_is_what_the_layers_norm_reads() -> None:
    """In BERT: what the layer read, and what its projection adds."""
    model, layout = attached(PostTraining())
    seen: list[torch.Tensor] = []
    norm = model.get_submodule("bert.encoder.layer.1.output.LayerNorm")
    handle = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(**BATCHES[0])
        handle.remove()
        _, stream_LO = layer_of(model, layout.feed_forward, {}, BATCHES[0])
    torch.testing.assert_close(stream_LO, seen[0][BATCHES[0]["attention_mask"] == 1])


def test_gates_are_folded_into_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compact model computes what the dense one does with gates on what goes into its projections."""
    found: dict[str, torch.Tensor] = {}
    real = gate_tuning.tuned_gates
    monkeypatch.setattr(
        "bplightning.strategies.post_training.post_training.tuned_gates",
        lambda *args: found.update(real(*args)) or found,
    )
    strategy = PostTraining(target=Target(flops=0.5))
    model, layout = attached(strategy)
    dense = tiny_bert()
    calibrate(model, strategy)
    strategy.advance(END)
    strategy.harden(layout)
    assert any(((gates_N - 1).abs() > 0.05).logical_and(gates_N != 0).any() for gates_N in found.values())
    inputs = padded_inputs(seed=9)
    see = lambda group, given: gated(given, found[group.name][None])  # noqa: E731
    with torch.no_grad(), writers_seen(dense, PrunableLayout.of(dense).groups, see):
        expected = dense(**inputs).start_logits
    torch.testing.assert_close(compact(model)(**inputs).start_logits, expected, rtol=1e-4, atol=1e-4)


def test_each_step_can_be_left_out() -> None:
    grids, states = [], []
    for options in ({}, {"tune": False}, {"tune": False, "rearrange": False}):
        strategy = PostTraining(target=Target(flops=0.5), **options)  # type: ignore[arg-type]
        model, _ = attached(strategy)
        calibrate(model, strategy)
        strategy.advance(END)
        grids.append(torch.cat([mask.kept for mask in strategy.all_masks]))
        states.append(copy.deepcopy(dict(model.named_parameters())))
    assert torch.equal(grids[0], grids[1])
    assert not torch.equal(grids[1], grids[2])
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_taylors_importance_is_the_mean_of_absolute_gradients() -> None:
    assert OneShotTaylor().losses(torch.tensor([[1.0, -2.0], [-3.0, 2.0]])).tolist() == [2.0, 2.0]
    assert PostTraining().losses(torch.tensor([[1.0, -2.0], [-3.0, 2.0]])).tolist() == [10.0, 8.0]


def test_taylor_divides_a_layer_s_importances_by_their_norm_if_asked_to() -> None:
    normed = OneShotTaylor(per_layer_norm=True)
    assert normed.losses(torch.tensor([[3.0, -4.0], [-3.0, 4.0]])).tolist() == pytest.approx([0.6, 0.8])
    assert normed.losses(torch.tensor([[0.03, -0.04]])).tolist() == pytest.approx([0.6, 0.8])
    assert normed.losses(torch.zeros(3, 2)).tolist() == [0.0, 0.0]


def test_taylor_keeps_the_same_part_of_heads_and_units() -> None:
    strategy = OneShotTaylor(target=Target(flops=0.55))
    model, _ = attached(strategy)
    calibrate(model, strategy)
    strategy.advance(END)
    by_role = strategy.density()
    assert float(by_role["attention"]) == 0.5
    assert 0.5 <= float(by_role["feed_forward"]) < 0.75  # what half of the heads leaves of the budget


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(flops=1), "target.flops is 1, which keeps everything"),
        (Target(density=0.5), "post-training cannot prune to: it takes target.flops or target.latency_speedup."),
        (Target(latency_speedup=[2, 3]), r"target.latency_speedup is \[2, 3\], and post-training makes one model"),
    ],
)
def test_targets_it_cannot_prune_to_are_refused(target: Target, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PostTraining(target=target)


def test_no_batch_is_refused() -> None:
    strategy = PostTraining()
    model, _ = attached(strategy)
    with pytest.raises(UserError, match="there was no batch to calibrate with"):
        strategy.calibrate(model, [], example_loss)


def test_what_cannot_be_reached_is_refused_before_calibration() -> None:
    with pytest.raises(UserError, match=r"target\.flops is 0\.001, which cannot be reached: .* it is 0\.0"):
        attached(PostTraining(target=Target(flops=0.001)))


@pytest.mark.parametrize("family", ["albert", "deberta-v2", "gpt2", "llama", "modernbert", "t5", "vit"])
def test_other_families_are_pruned_and_compact_exactly(family: str) -> None:
    """Layers that run several times, positions of their own, fused and grouped projections, two stacks, pixels."""
    model = tiny(family).eval()
    inputs, layout = comparison_inputs(model), PrunableLayout.of(model)
    strategy = PostTraining(target=Target(flops=0.6))
    strategy.attach(layout)
    strategy.calibrate(model, [inputs, inputs], lambda outputs, _: outputs[0].float().square().mean())
    strategy.advance(END)
    assert 0 < float(strategy.density()["total"]) < 1
    with torch.no_grad():
        masked = model(**inputs)[0]
        strategy.harden(layout)
        small = compact(model)
        torch.testing.assert_close(small(**inputs)[0], masked, rtol=1e-4, atol=1e-4)
    assert sum(value.numel() for value in small.parameters()) < sum(value.numel() for value in model.parameters())
