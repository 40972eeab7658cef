"""MoE-Pruner: its scores by hand, what it keeps, and experts dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_experts import CONFIGS, EXPERTS
from tiny_families import LAYERS, padded_inputs, tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from bplightning.compaction.exact_compaction import compact
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.groups import Member
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Mask, freeze_masks
from bplightning.strategies.moe_pruner.expert_inputs import LayerInputs
from bplightning.strategies.moe_pruner.moe_pruner import MoEPruner


class Batches:
    """Padded tokens, the same each time they are gone through."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (padded_inputs("right", seed=seed) for seed in range(3))


def pruned(model: PreTrainedModel, **options: Any) -> tuple[PrunableLayout, MoEPruner]:
    strategy, layout = MoEPruner(**options), PrunableLayout.of(model)
    strategy.attach(layout)
    strategy.calibrate(model, Batches(), lambda outputs, batch: outputs.logits.sum())
    return layout, strategy


def masks_of(strategy: MoEPruner) -> dict[Member, Mask]:
    return {cover.member: mask for mask in strategy.all_masks for cover in mask.covers}


@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}, {"target": Target(density=1), "experts": 2}])
def test_no_batch_is_refused(options: dict[str, Any]) -> None:
    """Else it would be magnitude, and any experts would go."""
    model, strategy = tiny("mixtral"), MoEPruner(**options)
    strategy.attach(PrunableLayout.of(model))
    with pytest.raises(UserError, match="there was no batch to calibrate with: give some training data"):
        strategy.calibrate(model, [], lambda outputs, batch: outputs.logits.sum())


@torch.no_grad()
def norms_by_hand(model: Any, layer: int, expert: int, *, weighted: bool) -> tuple[Tensor, Tensor]:
    """Token by token: norms of what an expert reads and of what its units are, each scaled by its router weight."""
    block = model.model.layers[layer].mlp
    seen: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    inputs_of, units_of = [], []
    for batch in Batches():
        seen.clear()
        model(**batch)
        (hidden,) = seen
        for row, real in zip(hidden, batch["attention_mask"].bool(), strict=True):
            for token in row[real]:
                odds = (block.gate.weight @ token).softmax(0)
                best = odds.topk(2).indices.tolist()
                if expert in best:
                    share = odds[expert] / odds[best].sum() if weighted else 1.0
                    gate, up = (block.experts.gate_up_proj[expert] @ token).chunk(2)
                    inputs_of.append(share * token)
                    units_of.append(share * nn.functional.silu(gate) * up)
    hook.remove()
    return torch.stack(inputs_of).square().sum(0).sqrt(), torch.stack(units_of).square().sum(0).sqrt()


@pytest.mark.parametrize("weighted", [True, False])
def test_scores_are_those_of_the_tokens_routed_to_an_expert(weighted: bool) -> None:
    model = tiny("mixtral", dtype=torch.float64)
    layout = PrunableLayout.of(model)
    groups = [group for group in layout.groups if group.layer == 1]
    found = LayerInputs(layout, groups, router_weighted=weighted).gather(Batches())
    for expert, group in enumerate(groups[1:]):
        inputs, units = norms_by_hand(model, 1, expert, weighted=weighted)
        for member in group.up:  # type: ignore[union-attr]
            torch.testing.assert_close(found[member], inputs, rtol=1e-6, atol=1e-6)  # routers round
        torch.testing.assert_close(found[group.down], units, rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]


@torch.no_grad()
def test_what_is_worth_least_in_each_row_goes_by_the_inputs_of_layers_pruned_before() -> None:
    model = tiny("mixtral", dtype=torch.float64)
    layout, strategy = pruned(model, target=Target(density=0.25))
    dense, masks = tiny("mixtral", dtype=torch.float64), masks_of(strategy)
    for layer in range(LAYERS):  # `dense` has the masks of the layers before in its weights
        for expert in range(EXPERTS):
            inputs, units = norms_by_hand(dense, layer, expert, weighted=True)
            group = next(g for g in layout.groups if g.name == f"decoder.{layer}.feed_forward.expert.{expert}")
            for member, norm in zip(group.members, (inputs, inputs, units), strict=True):
                scores = member.weight(dense).abs() * norm
                least = scores.sort(dim=1, descending=True).values[:, scores.shape[1] // 4 - 1 : scores.shape[1] // 4]
                assert torch.equal(masks[member].kept, scores >= least), member
        for group in layout.groups:
            if group.layer == layer:
                for member in group.members:
                    member.weight(dense).mul_(masks[member].kept)
    assert float(strategy.density()["total"]) == 0.25


def test_of_four_neighbours_two_stay_the_two_that_are_worth_most() -> None:
    model = tiny("mixtral")
    layout, strategy = pruned(model, pattern="2:4", attention=False)
    masks = masks_of(strategy)
    assert set(masks) == {member for group in layout.feed_forward for member in group.members}
    assert all((mask.kept.unflatten(1, (-1, 4)).sum(2) == 2).all() for mask in masks.values())
    up = layout.feed_forward[0].up[0]
    inputs, _ = norms_by_hand(tiny("mixtral"), 0, 0, weighted=True)
    fours = (up.weight(model).detach().abs() * inputs).unflatten(1, (-1, 4))
    kept = masks[up].kept.unflatten(1, (-1, 4))
    assert (fours.masked_fill(~kept, torch.inf).amin(2) >= fours.masked_fill(kept, 0).amax(2)).all()


@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_experts_worth_least_go_and_the_compact_model_is_exact(model_type: str) -> None:
    model = tiny(model_type, dtype=torch.float64)
    layout, strategy = pruned(model, experts=2, target=Target(density=0.5))
    inputs = padded_inputs("right", seed=9)
    masked = model(**inputs).logits
    freeze_masks(model)
    torch.testing.assert_close(model(**inputs).logits, masked)
    for mask in strategy.routers.values():
        assert int(mask.kept.sum()) == 2
    density = strategy.density()
    strategy.harden(layout)
    zeros = sum(int((member.weight(model) == 0).sum()) for member in layout.members)
    assert float(density["total"]) == pytest.approx(1 - zeros / layout.weights())
    smaller = compact(model)
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(smaller(**inputs).logits[seen], masked[seen], rtol=1e-10, atol=1e-10)
    assert smaller.config.num_experts == 2


def test_a_model_that_routes_around_experts_is_saved_only_compact(tmp_path: Path) -> None:
    model = tiny("mixtral")
    layout, strategy = pruned(model, experts=2)
    strategy.harden(layout)
    model.save_pretrained(tmp_path / "hardened")
    with pytest.raises(UserError, match=r"saved hardened but not compact, .*: compact it first"):
        type(model).from_pretrained(tmp_path / "hardened")
    smaller: Any = compact(model)
    smaller.save_pretrained(tmp_path / "compact")
    again = type(model).from_pretrained(tmp_path / "compact")
    assert not hasattr(again.config, "quantization_config")
    inputs = padded_inputs("right")
    torch.testing.assert_close(again(**inputs).logits, smaller(**inputs).logits)


@torch.no_grad()
def test_the_expert_that_goes_is_the_one_whose_weights_are_worth_least_together() -> None:
    model = tiny("mixtral", dtype=torch.float64)
    _, strategy = pruned(model, experts=EXPERTS - 1, target=Target(density=1))
    dense: Any = tiny("mixtral", dtype=torch.float64)
    worth = []
    for expert in range(EXPERTS):
        inputs, units = norms_by_hand(dense, 0, expert, weighted=True)
        experts = dense.model.layers[0].mlp.experts
        both = (experts.gate_up_proj[expert].abs() * inputs).sum()
        worth.append(float(both + (experts.down_proj[expert].abs() * units).sum()))
    kept = next(iter(strategy.routers.values())).kept
    assert kept.tolist() == [each > min(worth) for each in worth]


def with_an_expert_that_no_token_reaches() -> PreTrainedModel:
    """It is the first one of layer 0."""
    model = tiny("mixtral")
    with torch.no_grad():
        layer: Any = model.model.layers[0]
        layer.post_attention_layernorm.weight.abs_()
        layer.post_attention_layernorm.register_forward_hook(lambda module, inputs, output: output.abs())
        layer.mlp.gate.weight[0] = -10.0  # of inputs that are positive
    return model


def test_an_expert_that_no_token_reaches_goes_first() -> None:
    model: Any = with_an_expert_that_no_token_reaches()
    with torch.no_grad():
        model.model.layers[0].mlp.experts.gate_up_proj[0] *= 100  # however large it is
    _, strategy = pruned(model, experts=EXPERTS - 1, target=Target(density=1))
    assert next(iter(strategy.routers.values())).kept.tolist() == [False, True, True]


def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude() -> None:
    model = with_an_expert_that_no_token_reaches()
    layout, strategy = pruned(model)
    member = layout.feed_forward[0].down
    weight, kept = member.weight(model).detach().abs(), masks_of(strategy)[member].kept
    assert (weight.masked_fill(~kept, torch.inf).amin(1) >= weight.masked_fill(kept, 0).amax(1)).all()


def test_settings_that_no_model_can_have_are_refused() -> None:
    with pytest.raises(UserError, match=r"target\.flops is 0\.5, which moe-pruner cannot prune to"):
        MoEPruner(target=Target(flops=0.5))
    with pytest.raises(UserError, match=r"pattern is '4x4'; it must be N:M"):
        MoEPruner(pattern="4x4")
    with pytest.raises(UserError, match=r"target\.density is 0\.25 and pattern is 2:4, .* leave one of them out"):
        MoEPruner(target=Target(density=0.25), pattern="2:4")
    for experts in (1, 4):
        with pytest.raises(UserError, match=rf"experts is {experts}, .* to 2 of 3: keep a number from 2 to 3"):
            MoEPruner(experts=experts).attach(PrunableLayout.of(tiny("mixtral")))
    with pytest.raises(UserError, match=r"experts is 2, and a model of type 'llama' has none: leave it out"):
        MoEPruner(experts=2).attach(PrunableLayout.of(tiny("llama")))
